"""How good is each judge, and how many latents does each find interpretable?"""
