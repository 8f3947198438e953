"""TODO edge/sources."""
