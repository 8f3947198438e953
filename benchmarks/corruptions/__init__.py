"""Our corruptions against the reference implementation: parity and throughput."""
