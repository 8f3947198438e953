"""TODO training/signatures."""
