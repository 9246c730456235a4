"""Modules that both script folders contain, byte for byte, so that each folder runs alone."""
