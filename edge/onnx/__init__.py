"""TODO edge/onnx."""
