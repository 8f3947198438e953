"""Measurements: replay protocols, latency, storage, tables, figures, and their committed results."""
