"""Load images and labels."""
