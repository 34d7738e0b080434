"""Where training begins, if not at random: at the dictionary of another autoencoder."""

from typing import NamedTuple

import torch
from torch import Tensor

from bitlens.autoencoders.base import Autoencoder
from bitlens.errors import BitlensError

BLOCK = 4096  # rows encoded at a time


class Beginning(NamedTuple):
    """A dictionary in the units of the autoencoder that begins at it.

    A bit adds its decoder row or nothing, so a row is as long as what its latent adds in the mean
    where it is on.
    """

    W: Tensor
    """`[m, d]`"""
    b: Tensor
    """`[d]`"""
    rates: Tensor
    """how often each is on `[m]`; one that never is has no length"""


def require_room(other: Autoencoder, model: Autoencoder) -> None:
    """BitlensError unless `model` can begin at the dictionary of `other`."""
    if other.transcodes or other.d_in != model.d_in or other.n_latents > model.n_latents:
        raise BitlensError(
            f"`init` names a {other.architecture} of width {other.d_in} with {other.n_latents} "
            f"latents, at which one of width {model.d_in} with {model.n_latents} cannot begin: "
            "name an autoencoder of the same hook point, and no fewer latents than it has."
        )


@torch.no_grad()
def beginning(other: Autoencoder, model: Autoencoder, rows: Tensor) -> Beginning:
    """The dictionary of `other`, measured on standardised rows `[n, d_in]` of `model`."""
    counts, sums = (torch.zeros(other.n_latents, device=rows.device) for _ in range(2))
    for block in (rows * model.scale + model.mean).split(BLOCK):
        codes = other.encode(block)
        counts += (codes != 0).sum(0)
        sums += codes.sum(0)
    if not counts.any():
        raise BitlensError(
            "No latent of the autoencoder that `init` names is on in these hidden states; name one "
            "of the same model and hook point."
        )
    sizes = sums / counts.clamp_min(1)
    W = other.W_dec.float() * (sizes * other.output_scale / model.scale)[:, None]
    b = (other.b_dec.float() * other.scale + other.mean - model.mean) / model.scale
    return Beginning(W, b, counts / len(rows))
