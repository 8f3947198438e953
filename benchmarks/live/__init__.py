"""Live weights on many architectures, releases of ONNX Runtime and processors' features."""
