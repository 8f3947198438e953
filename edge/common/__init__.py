"""TODO edge/common."""
