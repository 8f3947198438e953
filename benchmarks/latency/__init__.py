"""TODO benchmarks/latency."""
