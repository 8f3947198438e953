"""What several benchmarks share: interleaved timing, sensors, memory, tables."""
