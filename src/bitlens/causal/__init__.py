"""What the bits do inside the model."""
