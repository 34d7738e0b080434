"""What is written for other tools and other people: exports, and the hub."""
