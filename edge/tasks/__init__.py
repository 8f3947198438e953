"""What the outputs of a model mean: the task, its output as a record, and how it is drawn."""
