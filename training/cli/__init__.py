"""TODO training/cli."""
