"""TODO benchmarks/demo."""
