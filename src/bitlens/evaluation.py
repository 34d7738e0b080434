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
from bitlens.bits.statistics import dense, firing_rates
from bitlens.causal.splice import Splice
from bitlens.errors import BitlensError
from bitlens.hidden.models import LanguageModel
from bitlens.hidden.paired import PairedStore
from bitlens.hidden.source import held_out
from bitlens.hidden.split import unseen
from bitlens.hidden.store import ActivationStore
from bitlens.information.autoregression import Autoregression
from bitlens.information.entropy import plug_in_bits
from bitlens.information.magnitudes import quantise_magnitudes
from bitlens.information.moments import Covariance, Variance, squared_error
from bitlens.information.rate_distortion import gaussian_bound
from bitlens.information.tree import Blocks
from bitlens.results import brief

FIT_ROWS = 65536  # of training documents, about: more of them lower bits_joint by a little, and take longer
MAGNITUDE_ROWS = 16384
SAMPLE = 0x5EED  # makes this choice of documents another one than that of the held-out ones


@dataclass(frozen=True)
class Evaluation:
    """The numbers that bitlens always reports."""

    __repr__ = brief

    architecture: str
    rows: int
    """rows that the numbers are from"""
    outliers: int
    """rows of outlying norm in the same documents, which were left out"""
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
    """mean number of latents that are on: not zero, of a BAE in canonical form"""
    dead: int
    """latents on in fewer than 1 row in 10,000, or removed in training"""
    stuck: int
    """latents off in fewer than 1 row in 10,000"""
    dense: int
    """latents that are on in more than a tenth of the rows"""
    highest_rate: float
    """firing rate of the latent that is on most often"""
    bits_marginal: float
    """sum of the latents' entropies; of a sparse autoencoder the support alone, without its magnitudes"""
    bits_tree: float
    """entropy under the Chow-Liu tree: every latent given one other"""
    bits_joint: float | None
    """code length under a logistic autoregression fitted on training documents: the tightest honest bound"""
    bits_magnitudes: float
    """what magnitudes cost on top, quantised so that fvu rises by 0.5 % of itself; 0 where there are none"""
    bits_gaussian: float | None
    """bits that a Gaussian with the covariance of all usual rows of the store needs at this fvu: the rate-distortion bound;
    None below 4 rows a component, from which a covariance cannot be told"""
    rows_per_second: float
    """rows encoded and decoded per second"""
    ce_original: float | None = None
    """cross-entropy of the language model, nats a token"""
    ce_spliced: float | None = None
    """the same with reconstructions in place of the hidden states"""
    ce_zero: float | None = None
    """the same with zeros in their place"""
    ce_mean: float | None = None
    """the same with the mean of the store's hidden states in their place"""
    ce_loss_score: float | None = None
    """(ce_zero - ce_spliced) / (ce_zero - ce_original): 1 is perfect"""
    ce_loss_score_mean: float | None = None
    """(ce_mean - ce_spliced) / (ce_mean - ce_original)"""
    kl_div: float | None = None
    """KL divergence of the next-token distribution, original to spliced, nats a token"""
    top1: float | None = None
    """share of tokens before which the likeliest next token stays the same"""
    ce_loss_score_low: float | None = None
    """95 % interval over contexts, as all that follow; None of too few"""
    ce_loss_score_high: float | None = None
    ce_loss_score_mean_low: float | None = None
    ce_loss_score_mean_high: float | None = None
    kl_div_low: float | None = None
    kl_div_high: float | None = None

    def as_dict(self) -> dict[str, str | int | float | None]:
        return asdict(self)


def latent_numbers(autoencoder: Autoencoder, bits: PackedBits) -> dict[str, float | int]:
    """l0, live, dead, stuck, dense and highest_rate of the rows whose `bits` (which latents are not zero) these are."""
    p = firing_rates(bits)
    on = autoencoder.on_rates(p)
    dead, stuck = int((p < NEGLIGIBLE).sum()), int((p > 1 - NEGLIGIBLE).sum())
    return {
        "l0": float(on.sum()), "live": len(p) - dead - stuck, "dead": dead, "stuck": stuck,
        "dense": int(dense(on).sum()), "highest_rate": float(on.max()),
    }  # fmt: skip


def usual_covariance(
    autoencoder: Autoencoder, store: ActivationStore, part: str = "usual"
) -> Covariance:
    """Covariance of what `autoencoder` reconstructs of all usual rows of the store, of training and of held-out ones; with
    part `all` of outlying rows, too."""
    device = autoencoder.mean.device
    return Covariance.of(autoencoder.pair(rows.hidden.to(device))[1] for rows in store.read(part))


@terminal.shown("evaluate")
@torch.inference_mode()
def evaluate(
    autoencoder: Autoencoder,
    store: ActivationStore,
    *,
    language_model: LanguageModel | None = None,
    splice: Splice | None = None,
    covariance: Covariance | None = None,
    max_contexts: int = 64,
    part: str = "test",
    outliers: bool = False,
    joint: bool = True,
    progress: bool = True,
) -> Evaluation:
    """Measure an autoencoder on the documents of a store that its training held out: see `bitlens.hidden.split.unseen`.

    language_model: a whole causal model hooked where the store was (for a transcoder also where it writes), for the
    cross-entropy numbers; without one they are None. splice, covariance: what `Splice.of_store` and `usual_covariance`
    made of the store, so that several autoencoders of one hook point share what does not depend on them. part: `test`, or
    `all` for a store that the autoencoder was not trained on. outliers: with part `all`, take rows of outlying norm, too,
    which are never trained on and are otherwise left out. joint: measure `bits_joint`, which takes longer than all the
    rest; otherwise it is None. progress: show it on standard error.
    """
    store.require_width(autoencoder.d_in)
    if autoencoder.transcodes != isinstance(store, PairedStore):
        raise BitlensError(
            "A transcoder is measured on two stores of one harvest, an autoencoder on one: "
            + ("give a PairedStore." if autoencoder.transcodes else "give the first.")
        )
    if part not in ("test", "all") or (outliers and part == "test"):
        raise BitlensError(
            f"part is test or all, and rows of outlying norm can be taken with all; not {part!r}."
        )
    read = "test" if part == "test" else "all" if outliers else "usual"
    store = unseen(store, autoencoder.metadata) if part == "test" else store
    variance, error, cosine = Variance(), 0.0, 0.0
    words, documents = [], []
    seconds = 0.0
    for rows in terminal.track(store.read(read), "read", len(store), lambda rows: len(rows.hidden)):
        x, target = autoencoder.pair(rows.hidden.to(autoencoder.mean.device).float())
        begun = time.perf_counter()
        codes = autoencoder.encode(x)
        x_hat = autoencoder.decode(codes, x)
        seconds += time.perf_counter() - begun
        words.append(PackedBits.pack(codes).words.cpu())
        documents.append(rows.columns["document"])
        variance.add(target)
        error += squared_error(target, x_hat)
        cosine += float(
            torch.nn.functional.cosine_similarity(target.double(), x_hat.double(), dim=1).sum()
        )
    n = variance.rows
    if n < 2:
        raise BitlensError(
            f"{store.path} has {n} held-out rows; harvest more documents, or pass `part='all'`."
            if part == "test" else f"{store.path} has {n} rows of usual norm; two are needed."
        )  # fmt: skip
    fvu = variance.fvu(error)
    gaussian = gaussian_bound(
        covariance or usual_covariance(autoencoder, store, "all" if outliers else "usual"), fvu
    )
    bits = PackedBits(torch.cat(words), autoencoder.n_latents)
    latents = latent_numbers(autoencoder, bits)
    removed = (
        autoencoder.metadata.get("n_latents_trained", autoencoder.n_latents) - autoencoder.n_latents
    )
    marginal, of_tree = plug_in_bits(bits, torch.cat(documents))
    if language_model and not splice:
        splice = Splice.of_store(language_model, autoencoder, store, max_contexts, part)
    losses = splice.losses(autoencoder)._asdict() if splice else {}
    losses.pop("tokens", None)
    return Evaluation(
        architecture=autoencoder.architecture,
        rows=n,
        outliers=_left_out(store, part, n),
        n_latents=autoencoder.n_latents + removed,
        fvu=fvu,
        explained_variance=1 - fvu,
        mse=error / n / autoencoder.d_out,
        cosine=cosine / n,
        bits_marginal=marginal,
        bits_tree=of_tree,
        bits_joint=_joint(autoencoder, store, bits, torch.cat(documents), part) if joint else None,
        bits_magnitudes=_magnitudes(autoencoder, store, read) if latents["l0"] else 0.0,
        bits_gaussian=gaussian,
        rows_per_second=n / seconds,
        **{**latents, "dead": latents["dead"] + removed},
        **losses,
    )


def _left_out(store: ActivationStore, part: str, measured: int) -> int:
    """Rows of the documents of this part that were not measured"""
    documents = (store.shard(i, ["document"])["document"] for i in range(len(store.shards)))
    return (
        sum(int(store.is_test(d).sum()) if part == "test" else len(d) for d in documents) - measured
    )


@terminal.shown("bits_joint")
def _joint(
    autoencoder: Autoencoder, store: ActivationStore, bits: PackedBits, ids: Tensor, part: str
) -> float | None:
    """Mean code length of the rows measured under a model of training documents (of `all` rows: the last under the others)."""
    if part == "all":
        test = Blocks.of(len(bits), ids).last_fifth()
        bits, fit, ids = bits[test], bits[~test], ids[~test]
    else:
        share = FIT_ROWS / max(1, len(store) - len(bits))
        words, documents = [], []
        for rows in store.read("train"):
            taken = torch.from_numpy(held_out(rows.columns["document"].numpy() ^ SAMPLE, share))
            words.append(
                autoencoder.encode_bits(autoencoder.pair(rows.hidden[taken])[0]).words.cpu()
            )
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
