"""TODO training/models."""
