"""Evaluate models under mixes, and measure the gain table."""
