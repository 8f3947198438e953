"""TODO edge/bundle."""
