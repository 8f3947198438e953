"""TODO training/data."""
