"""The fault drill: everything that goes wrong with a camera, on purpose, and what the frame loop makes of it."""
