"""Strategies to change the weights of an ONNX Runtime session that runs."""
