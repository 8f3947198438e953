"""Where frames come from: cameras, streams, files, arrays, a test pattern.

A frame that cannot be decoded is counted, never replaced. Cameras, videos and streams are read in a separate process.
"""
