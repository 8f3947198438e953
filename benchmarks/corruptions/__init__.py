"""TODO benchmarks/corruptions."""
