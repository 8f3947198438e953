"""Robust weight signatures: one import name for the runtime, the oracle, training and benchmarks."""
