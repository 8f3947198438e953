"""TODO edge/monitoring."""
