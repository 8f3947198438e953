"""Where frames come from: cameras, streams, files, arrays, a test pattern.

A source yields what it was given and nothing else: a frame that cannot be decoded is counted, never replaced by
another. Cameras, video files and streams are read in a separate process (`rws.edge.sources.capture`).
"""
