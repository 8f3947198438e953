"""TODO benchmarks/zoo."""
