"""TODO training/oracle."""
