"""The explorer: a page on a run's latents, served on this computer or written as a static copy."""
