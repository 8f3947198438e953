"""Build a bundle from labelled images: the recipe and its jobs."""
