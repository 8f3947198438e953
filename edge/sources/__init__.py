"""Where frames come from: cameras, streams, files, arrays, a test pattern."""
