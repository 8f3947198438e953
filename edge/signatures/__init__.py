"""TODO edge/signatures."""
