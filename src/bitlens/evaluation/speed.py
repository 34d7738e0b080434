"""How fast rows are encoded and decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from bitlens.evaluation.measured import Measured
from bitlens.results import Number


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Of this machine, in the pass over the rows."""

    rows_per_second: Annotated[float, Number("encode and decode", ",.0f")]

    @staticmethod
    def measure(measured: Measured) -> dict[str, Any]:
        """-> the numbers, by name"""
        return {"rows_per_second": measured.rows / measured.seconds}
