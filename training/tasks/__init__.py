"""What a model of each task is trained for and scored by."""
