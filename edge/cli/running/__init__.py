"""What one `rws run` is made of: its cameras, outputs and what it prints."""
