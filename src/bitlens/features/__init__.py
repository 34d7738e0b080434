"""What the bits mean, read from packed codes."""
