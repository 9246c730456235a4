"""Modules that both script folders hold, byte for byte, so that each folder runs alone."""
