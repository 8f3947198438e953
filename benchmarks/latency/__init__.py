"""Latency of patched models beside untouched sessions."""
