"""Faults and bad input by the hundred, against both script folders: `make torture`.

Every attempt runs in a process forked from one that has imported everything and started no
thread, in a temporary folder of its own, within a time limit. What it draws at random is a
function of the seed, the fault and the attempt's number, so that each can be repeated alone.
"""
