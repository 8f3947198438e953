"""TODO benchmarks/streams."""
