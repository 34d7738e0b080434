"""Transcoders: what an MLP adds, from what it reads (Dunefsky et al. 2024, arXiv 2406.11944)."""

from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from bitlens.autoencoders.jumprelu import JumpReLUAutoencoder
from bitlens.autoencoders.relu import ReLUAutoencoder
from bitlens.autoencoders.sparse import SparseAutoencoder
from bitlens.autoencoders.topk import TopKAutoencoder, TopKLearner
from bitlens.errors import BitlensError


class Transcodes(SparseAutoencoder):
    """What makes an autoencoder a transcoder, in front of its bases.

    Training rows are pairs of an input `[d_in]` and a target `[d_out]`; `mean_out` and `scale_out`
    are the target's. Decoder norms are free, and nothing is subtracted from the input.
    """

    subtracts_b_dec = False
    transcodes = True

    def __init__(self, d_in: int, n_latents: int, *args: Any, d_out: int, **settings: Any) -> None:
        super().__init__(d_in, n_latents, *args, d_out=d_out, **settings)
        self.mean_out = nn.Buffer(torch.zeros(d_out))
        self.scale_out = nn.Buffer(torch.ones(()))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Random encoder directions of unit norm; everything else zero."""
        directions = torch.randn(self.n_latents, self.d_in, generator=generator)
        self.W_enc.copy_((directions / directions.norm(dim=1, keepdim=True)).T)
        for tensor in (self.b_enc, self.W_dec, self.b_dec):
            tensor.zero_()

    def pair(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows `[..., d_in + d_out]` -> the input and its target."""
        return rows[..., : self.d_in], rows[..., self.d_in :]

    def standardise_rows(self, rows: Tensor) -> Tensor:
        """Both sides of the rows, each by its own mean and scale."""
        x, target = self.pair(rows)
        y = (target.to(x.device).float() - self.mean_out) / self.scale_out
        return torch.cat([self.standardise(x), y], -1)

    def decode(self, codes: Tensor, x: Tensor | None = None) -> Tensor:
        """Codes `[..., n_latents]` -> raw target `[..., d_out]`."""
        return self.reconstruct(codes) * self.scale_out + self.mean_out


class Skips(Transcodes):
    """A transcoder beside an affine map from input to target, which takes what is linear (Paulo et
    al. 2025)."""

    def __init__(self, d_in: int, n_latents: int, *args: Any, d_out: int, **settings: Any) -> None:
        super().__init__(d_in, n_latents, *args, d_out=d_out, **settings)
        self.W_skip = nn.Parameter(torch.zeros(d_in, d_out))

    def decode(self, codes: Tensor, x: Tensor | None = None) -> Tensor:
        """Codes and raw input -> raw target."""
        if x is None:
            raise BitlensError("A skip transcoder needs its input, too: call decode(codes, x).")
        return super().decode(codes) + self.standardise(x) @ self.W_skip * self.scale_out


class Transcoder(Transcodes, TopKAutoencoder):
    """TopK with a decoder that starts at zero (Paulo et al. 2025, arXiv 2501.18823)."""

    architecture = "transcoder"
    setting_names = ("k", "d_out")


class SkipTranscoder(Skips, Transcoder):
    """The same with a skip."""

    architecture = "skip_transcoder"


class ReLUTranscoder(Transcodes, ReLUAutoencoder):
    """`relu(z)` of one hook point, for another."""

    architecture = "relu_transcoder"
    setting_names = ("d_out",)


class ReLUSkipTranscoder(Skips, ReLUTranscoder):
    """The same with a skip."""

    architecture = "relu_skip_transcoder"


class JumpReLUTranscoder(Transcodes, JumpReLUAutoencoder):
    """`z` where it exceeds a latent's threshold, of one hook point, for another (Gemma Scope,
    arXiv 2408.05147)."""

    architecture = "jumprelu_transcoder"
    setting_names: ClassVar[tuple[str, ...]] = ("d_out",)


class JumpReLUSkipTranscoder(Skips, JumpReLUTranscoder):
    """The same with a skip."""

    architecture = "jumprelu_skip_transcoder"


AnyTranscoder = TypeVar("AnyTranscoder", bound=Transcoder)


class TranscoderLearner(TopKLearner[AnyTranscoder]):
    """TopK's losses between an input and another target, side by side in the rows."""

    unit_rows = False


class SkipTranscoderLearner(TranscoderLearner[SkipTranscoder]):
    """The same with the affine map's share."""

    def prediction(self, x: Tensor, codes: Tensor) -> Tensor:
        """Of the standardised target, by both."""
        return super().prediction(x, codes) + x @ self.model.W_skip
