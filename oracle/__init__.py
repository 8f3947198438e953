"""The oracle: which corruption does a frame carry, how strong, and which signatures answer it."""
