"""Other methods on the same streams: BatchNorm statistics, Tent, one augmented model."""
