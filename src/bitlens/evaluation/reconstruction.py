"""How near reconstructions are to hidden states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from bitlens.evaluation.measured import Measured
from bitlens.results import Number


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Errors, and what they are a fraction of."""

    fvu: Annotated[float, Number("fraction of variance unexplained", ".4f")]
    explained_variance: Annotated[float, Number("1 - fvu", ".4f")]
    mse: Annotated[float, Number("in the model's own units", ".4g")]
    cosine: Annotated[float, Number("of hidden state and reconstruction", ".4f")]

    @staticmethod
    def measure(measured: Measured) -> dict[str, Any]:
        """-> the numbers, by name"""
        return {
            "fvu": measured.fvu,
            "explained_variance": 1 - measured.fvu,
            "mse": measured.squared_error / measured.rows / measured.autoencoder.d_out,
            "cosine": measured.cosine / measured.rows,
        }
