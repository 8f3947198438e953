"""TODO benchmarks/pages."""
