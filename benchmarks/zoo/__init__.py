"""Adopted models, measured."""
