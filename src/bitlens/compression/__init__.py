"""Hidden states in a file of bits, at the price of its code length."""
