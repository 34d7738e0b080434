"""Known labels: what they are read from, how latents score against them, and probes."""
