"""Signature sets: the file format, quantisation, and how a set fits a model."""
