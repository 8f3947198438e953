"""TODO training/evaluation."""
