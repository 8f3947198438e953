"""What many jobs cost: overhead, growth, and the same work in other places."""
