"""Weights that change inside a running session, on ONNX Runtime or on Torch."""
