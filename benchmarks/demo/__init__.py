"""The demo: a bundled stream of real frames."""
