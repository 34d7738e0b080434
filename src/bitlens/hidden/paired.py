"""Two hook points of one harvest as pairs: what goes into a module, and what comes out of it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bitlens.errors import BitlensError
from bitlens.files import read_manifest
from bitlens.hidden.store import MANIFEST, SCHEMA, ActivationStore


class PairedStore(ActivationStore):
    """The store `inputs` whose rows hold the same token's hidden state in `targets` beside their own:
    `[rows, d_in + d_out]`. A row of outlying norm in either is left out. For transcoders."""

    def __init__(
        self, inputs: Path | str, targets: Path | str, test_fraction: float | None = None
    ) -> None:
        super().__init__(inputs, test_fraction)
        self.targets = ActivationStore(targets, test_fraction)
        shape = [[shard["rows"] for shard in store.shards] for store in (self, self.targets)]
        same = (
            "model", "revision", "model_digest", "corpus", "context_length", "packed", "prepend_bos", "test_fraction",
        )  # fmt: skip
        if shape[0] != shape[1] or any(
            self.manifest.get(k) != self.targets.manifest.get(k) for k in same
        ):
            raise BitlensError(
                f"{inputs} and {targets} are not of one harvest; harvest both hook points at once."
            )
        self.d_out, self.mean_out, self.scale_out = (
            self.targets.d_in,
            self.targets.mean,
            self.targets.scale,
        )
        self.about = {
            **self.about,
            "target": str(targets),
            "target_hook": self.targets.manifest.get("hook"),
        }

    @classmethod
    def beside(
        cls, inputs: Path | str, target_hook: str, test_fraction: float | None = None
    ) -> PairedStore:
        """With the store of the hook point `target_hook` in the same folder, where a harvest of several puts it."""
        for file in sorted(Path(inputs).resolve().parent.glob(f"*/{MANIFEST}")):
            manifest = read_manifest(file, SCHEMA, "a store of hidden states")
            if (
                manifest.get("kind") == "bitlens.store"
                and (manifest.get("hook") or {}).get("module") == target_hook
            ):
                return cls(inputs, file.parent, test_fraction)
        raise BitlensError(
            f"There is no store of {target_hook} beside {inputs}: harvest both hook points into one folder."
        )

    def __repr__(self) -> str:
        return f"PairedStore({super().__repr__()} -> {self.targets!r})"

    def shard(self, index: int, names: list[str] | None = None) -> dict[str, Tensor]:
        tensors = super().shard(index, names)
        of_targets = self.targets.shard(
            index, [name for name in ("hidden", "norm") if name in tensors]
        )
        if "hidden" in tensors:
            tensors["hidden"] = torch.cat([tensors["hidden"], of_targets["hidden"]], 1)
        if "norm" in tensors:
            outlying = of_targets["norm"] > self.targets.outlier_norm
            tensors["norm"] = tensors["norm"].masked_fill(outlying, torch.inf)
        return tensors
