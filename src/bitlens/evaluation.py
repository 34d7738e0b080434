"""One table of numbers about one autoencoder, on documents that it was not trained on."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from bitlens import terminal
from bitlens.autoencoders import Autoencoder
from bitlens.autoencoders.binary import NEGLIGIBLE
from bitlens.bits.packed import PackedBits
from bitlens.bits.statistics import firing_rates
from bitlens.causal.splice import Splice
from bitlens.errors import BitlensError
from bitlens.hidden.models import LanguageModel
from bitlens.hidden.source import held_out
from bitlens.hidden.store import ActivationStore
from bitlens.information.autoregression import Autoregression
from bitlens.information.entropy import plug_in_bits
from bitlens.information.magnitudes import quantise_magnitudes
from bitlens.information.rate_distortion import gaussian_bits
from bitlens.information.tree import Blocks

DENSE = 0.1
FIT_ROWS = 65536  # of training documents, about: more of them lower bits_joint by a little, and take longer
MAGNITUDE_ROWS = 16384
SAMPLE = 0x5EED  # makes this choice of documents another one than that of the held-out ones


@dataclass(frozen=True)
class Evaluation:
    """The numbers that bitlens always reports."""

    architecture: str
    rows: int
    """held-out rows that the numbers are from"""
    n_latents: int
    """latents that were trained"""
    live: int
    """latents that are neither dead nor stuck on these rows"""
    fvu: float
    """fraction of variance unexplained, about the mean: predicting the mean gives 1"""
    explained_variance: float
    """1 - fvu"""
    mse: float
    """mean squared error of a component, in the hidden states' own units"""
    cosine: float
    """mean cosine of hidden state and reconstruction"""
    l0: float
    """mean number of latents in their rarer state, for a BAE; of non-zero latents otherwise"""
    dead: int
    """latents on in fewer than 1 row in 10,000, or removed in training"""
    stuck: int
    """latents off in fewer than 1 row in 10,000"""
    dense: int
    """latents whose rarer state has a rate above 0.1"""
    highest_rate: float
    """firing rate of the latent that is on most often; of a BAE that of rarer states"""
    bits_marginal: float
    """sum of the latents' entropies; of a sparse autoencoder the support alone, without its magnitudes"""
    bits_tree: float
    """entropy under the Chow-Liu tree: every latent given one other"""
    bits_joint: float | None
    """code length under a logistic autoregression fitted on training documents: the tightest honest bound"""
    bits_magnitudes: float
    """what magnitudes cost on top, quantised so that fvu rises by 0.5 % of itself; 0 for a BAE, which has none"""
    bits_gaussian: float
    """bits that a Gaussian with the data's covariance needs at this fvu: the rate-distortion bound"""
    rows_per_second: float
    """rows encoded and decoded per second"""
    ce_original: float | None = None
    """cross-entropy of the language model, nats a token"""
    ce_spliced: float | None = None
    """the same with reconstructions in place of the hidden states"""
    ce_zero: float | None = None
    """the same with zeros in their place"""
    ce_mean: float | None = None
    """the same with the mean of the hidden states in their place"""
    ce_loss_score: float | None = None
    """(ce_zero - ce_spliced) / (ce_zero - ce_original): 1 is perfect"""
    ce_loss_score_mean: float | None = None
    """(ce_mean - ce_spliced) / (ce_mean - ce_original)"""
    kl_div: float | None = None
    """KL divergence of the next-token distribution, original to spliced, nats a token"""
    top1: float | None = None
    """share of tokens before which the likeliest next token stays the same"""

    def as_dict(self) -> dict[str, str | int | float | None]:
        return asdict(self)


class Moments:
    """Streamed float64 sums over rows of hidden states and their reconstructions."""

    def __init__(self, origin: Tensor) -> None:
        """origin: near the mean `[d]`; sums are taken about it, so that nothing cancels."""
        d = len(origin)
        self.origin = origin.double()
        self.rows = 0
        self.total = torch.zeros(d, dtype=torch.float64)
        self.products = torch.zeros(d, d, dtype=torch.float64)
        self.squared_error = self.cosine = 0.0

    def add(self, x: Tensor, x_hat: Tensor) -> None:
        """x, x_hat `[n, d]`, raw"""
        shifted = x.double() - self.origin
        self.rows += len(x)
        self.total += shifted.sum(0)
        self.products += shifted.T @ shifted
        self.squared_error += float((x_hat.double() - x.double()).square().sum())
        self.cosine += float(torch.nn.functional.cosine_similarity(x.double(), x_hat.double(), dim=1).sum())

    def covariance(self) -> Tensor:
        mean = self.total / self.rows
        return self.products / self.rows - mean[:, None] * mean

    def fvu(self) -> float:
        """Squared error over the variance about these rows' own mean."""
        variance = float(self.covariance().diagonal().sum()) * self.rows
        if not variance > 0:
            raise BitlensError(
                "The held-out rows are all equal, so the fraction of variance unexplained has no meaning."
            )
        return self.squared_error / variance


@terminal.shown("evaluate")
@torch.inference_mode()
def evaluate(
    autoencoder: Autoencoder,
    store: ActivationStore,
    *,
    language_model: LanguageModel | None = None,
    splice: Splice | None = None,
    max_contexts: int = 64,
    part: str = "test",
    joint: bool = True,
    progress: bool = True,
) -> Evaluation:
    """Measure an autoencoder on the held-out documents of a store.

    language_model: a whole causal model hooked where the store was (for a transcoder also where it writes), for the
    cross-entropy numbers; without one they are None. splice: in its place, what `Splice.of_store` made of it, so that
    several autoencoders of one hook point share what does not depend on them. part: `test`, or `all` for a store that
    the autoencoder was not trained on. joint: measure `bits_joint`, which takes longer than all the rest; otherwise it
    is None. progress: show it on standard error.
    """
    store.require_width(autoencoder.d_in)
    moments = None
    words, documents = [], []
    seconds = 0.0
    for rows in terminal.track(store.read(part), "read", len(store), lambda rows: len(rows.hidden)):
        x, target = autoencoder.pair(rows.hidden.float().to(autoencoder.mean.device))
        begun = time.perf_counter()
        codes = autoencoder.encode(x)
        x_hat = autoencoder.decode(codes, x)
        seconds += time.perf_counter() - begun
        words.append(PackedBits.pack(codes != 0).words.cpu())
        documents.append(rows.columns["document"])
        moments = moments or Moments(target.mean(0).cpu())
        moments.add(target.cpu(), x_hat.cpu())
    if moments is None or moments.rows < 2:
        raise BitlensError(
            f"{store.path} has {moments.rows if moments else 0} held-out rows; harvest more documents, or pass `part='all'`."
        )
    bits = PackedBits(torch.cat(words), autoencoder.n_latents)
    p = firing_rates(bits)
    rare = torch.minimum(p, 1 - p)
    removed = autoencoder.metadata.get("n_latents_trained", autoencoder.n_latents) - autoencoder.n_latents
    fvu = moments.fvu()
    marginal, of_tree = plug_in_bits(bits)
    if language_model and not splice:
        splice = Splice.of_store(language_model, autoencoder, store, max_contexts, part)
    losses = splice.losses(autoencoder)._asdict() if splice else {}
    losses.pop("tokens", None)
    return Evaluation(
        architecture=autoencoder.architecture,
        rows=moments.rows,
        n_latents=autoencoder.n_latents + removed,
        live=int((rare >= NEGLIGIBLE).sum()),
        fvu=fvu,
        explained_variance=1 - fvu,
        mse=moments.squared_error / moments.rows / autoencoder.d_out,
        cosine=moments.cosine / moments.rows,
        l0=float((rare if autoencoder.binary else p).sum()),
        dead=int((p < NEGLIGIBLE).sum()) + removed,
        stuck=int((p > 1 - NEGLIGIBLE).sum()),
        dense=int((rare > DENSE).sum()),
        highest_rate=float((rare if autoencoder.binary else p).max()),
        bits_marginal=marginal,
        bits_tree=of_tree,
        bits_joint=_joint(autoencoder, store, bits, torch.cat(documents), part) if joint else None,
        bits_magnitudes=_magnitudes(autoencoder, store, part),
        bits_gaussian=gaussian_bits(moments.covariance(), fvu),
        rows_per_second=moments.rows / seconds,
        **losses,
    )


@terminal.shown("bits_joint")
def _joint(autoencoder: Autoencoder, store: ActivationStore, bits: PackedBits, ids: Tensor, part: str) -> float | None:
    """Mean code length of the rows measured under a model of training documents (of `all` rows: the last under the others)."""
    if part == "all":
        test = Blocks.of(len(bits), ids).last_fifth()
        bits, fit, ids = bits[test], bits[~test], ids[~test]
    else:
        share = FIT_ROWS / max(1, len(store) - len(bits))
        words, documents = [], []
        for rows in store.read("train"):
            taken = torch.from_numpy(held_out(rows.columns["document"].numpy() ^ SAMPLE, share))
            words.append(autoencoder.encode_bits(autoencoder.pair(rows.hidden[taken])[0]).words.cpu())
            documents.append(rows.columns["document"][taken])
        if not words:
            return None
        fit, ids = PackedBits(torch.cat(words), bits.n_latents), torch.cat(documents)
    if len(fit) < 2 or not len(bits):
        return None
    return float(Autoregression.of_rows(fit, ids).code_lengths(bits).mean())


@terminal.shown("bits_magnitudes")
def _magnitudes(autoencoder: Autoencoder, store: ActivationStore, part: str) -> float:
    if autoencoder.binary:
        return 0.0
    rows, n = [], 0
    for block in store.read(part):
        rows.append(block.hidden[: MAGNITUDE_ROWS - n])
        n += len(rows[-1])
        if n == MAGNITUDE_ROWS:
            break
    return quantise_magnitudes(autoencoder, torch.cat(rows)).bits
