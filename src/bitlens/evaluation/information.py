"""How many bits codes carry, and how many the hidden states need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch

from bitlens import terminal
from bitlens.autoencoders import Autoencoder
from bitlens.bits.packed import PackedBits
from bitlens.evaluation.measured import Measured
from bitlens.hidden.source import held_out
from bitlens.hidden.store import ActivationStore
from bitlens.information.autoregression import Autoregression
from bitlens.information.entropy import plug_in_bits
from bitlens.information.magnitudes import quantise_magnitudes
from bitlens.information.moments import Covariance
from bitlens.information.rate_distortion import gaussian_bound
from bitlens.information.tree import Blocks
from bitlens.results import Number

# Of training documents, about: more of them lower bits_joint by a little, and take longer.
FIT_ROWS = 65536
MAGNITUDE_ROWS = 16384
SAMPLE = 0x5EED  # makes this choice of documents another one than that of the held-out ones


@dataclass(frozen=True, kw_only=True)
class Information:
    """Bits a row. Of a sparse autoencoder the first three are about the support alone."""

    bits_marginal: Annotated[float, Number("sum of the latents' entropies", ".1f")]
    bits_tree: Annotated[float, Number("the same, each given one other", ".1f")]
    bits_joint: Annotated[float | None, Number("code length, each given all before it", ".1f")]
    bits_magnitudes: Annotated[float, Number("floats on top, at 1.005 of the fvu", ".1f")]
    bits_gaussian: Annotated[float | None, Number("rate-distortion bound at this fvu", ".1f")]

    @staticmethod
    def measure(measured: Measured) -> dict[str, Any]:
        """-> the numbers, by name; None without `joint`, or with too few rows for a covariance"""
        covariance = measured.covariance
        if covariance is None:
            part = "all" if measured.part == "all" else "usual"
            covariance = usual_covariance(measured.autoencoder, measured.store, part)
        gaussian = gaussian_bound(covariance, measured.fvu)
        marginal, tree = plug_in_bits(measured.bits, measured.documents)
        return {
            "bits_marginal": marginal,
            "bits_tree": tree,
            "bits_joint": _joint(measured) if measured.joint else None,
            "bits_magnitudes": _magnitudes(measured),
            "bits_gaussian": gaussian,
        }


def usual_covariance(
    autoencoder: Autoencoder, store: ActivationStore, part: str = "usual"
) -> Covariance:
    """Covariance of what `autoencoder` reconstructs of all usual rows of the store, of training and
    of held-out ones; with part `all` of outlying rows, too."""
    device = autoencoder.mean.device
    return Covariance.of(autoencoder.pair(rows.hidden.to(device))[1] for rows in store.read(part))


@terminal.shown("bits_joint")
def _joint(measured: Measured) -> float | None:
    """Mean code length of the measured rows under a model of training documents.

    Without held-out rows: of the last documents under a model of the others.
    """
    bits, ids = measured.bits, measured.documents
    if measured.part != "test":
        test = Blocks.of(len(bits), ids).last_fifth()
        bits, fit, ids = bits[test], bits[~test], ids[~test]
    else:
        fit, ids = _training_bits(measured)
    if len(fit) < 2 or not len(bits):
        return None
    return float(Autoregression.fit(fit, ids).code_lengths(bits).mean())


def _training_bits(measured: Measured) -> tuple[PackedBits, torch.Tensor]:
    """Bits and documents of a sample of the training documents."""
    autoencoder, store = measured.autoencoder, measured.store
    share = FIT_ROWS / max(1, len(store) - measured.rows)
    words = [measured.bits.words[:0]]
    documents = [measured.documents[:0]]
    for rows in store.read("train"):
        ids = rows.columns["document"]
        chosen = torch.from_numpy(held_out(ids.numpy() ^ SAMPLE, share))
        words.append(autoencoder.encode_bits(autoencoder.pair(rows.hidden[chosen])[0]).words.cpu())
        documents.append(ids[chosen])
    return PackedBits(torch.cat(words), autoencoder.n_latents), torch.cat(documents)


@terminal.shown("bits_magnitudes")
def _magnitudes(measured: Measured) -> float:
    if measured.autoencoder.binary or not measured.bits.words.any():
        return 0.0
    rows, n = [], 0
    for block in measured.store.read(measured.part):
        rows.append(block.hidden[: MAGNITUDE_ROWS - n])
        n += len(rows[-1])
        if n == MAGNITUDE_ROWS:
            break
    return quantise_magnitudes(measured.autoencoder, torch.cat(rows)).bits
