"""Bytes on disk and in memory, and accuracy against precision."""
