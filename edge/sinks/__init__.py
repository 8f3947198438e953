"""TODO edge/sinks."""
