"""TODO training/jobs."""
