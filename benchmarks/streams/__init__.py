"""Accuracy on streams of changing corruption."""
