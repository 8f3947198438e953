"""Models whose shallow weights can be patched while they run, on ONNX Runtime or on Torch."""
