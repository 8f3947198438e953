"""TODO benchmarks/oracle."""
