"""What a run tells about itself: status, totals, metrics, console, systemd."""
