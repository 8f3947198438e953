"""Read, check and rewrite ONNX graphs."""
