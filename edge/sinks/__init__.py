"""Outputs of a run: JSON lines, CSV, video, a window; files are written in the background."""
