"""Capture in a separate process, which can be killed when a driver or a network blocks."""
