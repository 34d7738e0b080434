"""Write an autoencoder, or what it found, for another tool: bitlens export TOOL."""
