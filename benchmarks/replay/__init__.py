"""TODO benchmarks/replay."""
