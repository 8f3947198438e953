"""Evaluate a bundle on corrupted test sets."""
