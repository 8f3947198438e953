"""TODO benchmarks/storage."""
