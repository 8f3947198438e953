"""Latency of patched models compared with untouched sessions."""
