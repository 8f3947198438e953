"""Opening and decoding, in the capture process: OpenCV for cameras, PyAV (FFmpeg) for files and network streams."""
