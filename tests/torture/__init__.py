"""Fault injection in both script folders: `make torture`.

Every attempt runs in a process forked from one that has imported everything but started no
threads, in its own temporary folder and with a time limit. Its random numbers are a function of
the seed, the fault and the attempt's index, so that each attempt can be repeated alone.
"""
