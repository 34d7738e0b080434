"""In-context learning, in bits."""
