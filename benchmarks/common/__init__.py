"""TODO benchmarks/common."""
