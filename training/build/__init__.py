"""TODO training/build."""
