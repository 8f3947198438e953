"""TODO training/adopt."""
