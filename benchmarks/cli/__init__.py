"""TODO benchmarks/cli."""
