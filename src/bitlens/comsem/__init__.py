"""ComSem: a language model explains latents, and judges the explanations with yes or no."""
