"""Measure adopted models."""
