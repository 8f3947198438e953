"""Architectures, the training loop, checkpoints and ONNX export."""
