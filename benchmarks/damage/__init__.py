"""Damaged images and streams on their way to the oracle: what is seen, what passes."""
