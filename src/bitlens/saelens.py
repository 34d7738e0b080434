"""`import bitlens.saelens`, and SAELens opens runs of bitlens.

    import bitlens.saelens
    from sae_lens import SAE

    sae = SAE.load_from_disk("run")                                         # of bits, and others
    sae = SAE.load_from_disk("run", converter=bitlens.saelens.converter)    # every architecture

The first needs an architecture whose name SAELens itself does not have (`bae`, `random`, `relu`,
`batch_topk`, `pca`); with the second, `gated`, `topk`, `jumprelu` and transcoders open, too, and
what SAELens has an architecture for becomes one of its own. `sae.cfg.coding` and `sae.cfg.flips`
say how bits are found: see `bitlens.autoencoders.BinaryAutoencoder`.
"""

from bitlens.ecosystem.registered import BinarySAE, converter, opened

__all__ = ["BinarySAE", "converter", "opened"]
