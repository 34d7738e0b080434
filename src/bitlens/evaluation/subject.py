"""What was measured: the autoencoder and the rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from bitlens.evaluation.measured import Measured
from bitlens.evaluation.sparsity import latent_numbers, removed_latents
from bitlens.results import Number


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The autoencoder, its width and how many rows the numbers are from."""

    architecture: str
    rows: Annotated[int, Number("measured", ",d")]
    outliers: Annotated[int, Number("rows of outlying norm, left out", ",d")]
    n_latents: Annotated[int, Number("latents trained")]
    live: Annotated[int, Number("neither dead nor stuck")]

    @staticmethod
    def measure(measured: Measured) -> dict[str, Any]:
        """-> the numbers, by name"""
        autoencoder = measured.autoencoder
        return {
            "architecture": autoencoder.architecture,
            "rows": measured.rows,
            "outliers": _rows_of_part(measured) - measured.rows,
            "n_latents": autoencoder.n_latents + removed_latents(autoencoder),
            "live": latent_numbers(autoencoder, measured.bits)["live"],
        }


def _rows_of_part(measured: Measured) -> int:
    """Rows of the documents that were measured, those of outlying norm included."""
    store = measured.store
    documents = [store.shard(i, ["document"])["document"] for i in range(len(store.shards))]
    if measured.part == "test":
        return sum(int(store.is_test(ids).sum()) for ids in documents)
    return sum(map(len, documents))
