"""How many bits there are, and how many there would have to be."""
