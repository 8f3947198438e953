"""TODO benchmarks/baselines."""
