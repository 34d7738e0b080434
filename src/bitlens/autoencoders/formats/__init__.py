"""Autoencoders that other libraries have trained, read in bitlens' own terms: a file a library."""
