"""Where results go: JSON lines, CSV, video, a window; written in the background."""
