"""Two stores of one harvest, whose rows are of the same tokens."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bitlens.errors import BitlensError
from bitlens.files import read_manifest
from bitlens.hidden.store import KIND, MANIFEST, SCHEMA, WHAT, ActivationStore
from bitlens.remote import place

# What the two have in common, beside the rows of each shard.
OF_ONE_HARVEST = ("model", "revision", "model_digest", "corpus", "context_length", "packed")
OF_ONE_HARVEST += ("prepend_bos", "test_fraction")


class PairedStore(ActivationStore):
    """The store `inputs` whose rows hold the same token's hidden state in `targets` beside their
    own, `[rows, d_in + d_out]`. A row of outlying norm in either is left out. For transcoders."""

    def __init__(
        self, inputs: Path | str, targets: Path | str, test_fraction: float | None = None
    ) -> None:
        super().__init__(inputs, test_fraction)
        self.targets = target = ActivationStore(targets, test_fraction)
        rows = [[shard["rows"] for shard in store.shards] for store in (self, target)]
        differ = any(self.manifest.get(k) != target.manifest.get(k) for k in OF_ONE_HARVEST)
        if rows[0] != rows[1] or differ:
            raise BitlensError(
                f"{inputs} and {targets} are not of one harvest; harvest both hook points at once."
            )
        self.d_out, self.mean_out, self.scale_out = target.d_in, target.mean, target.scale
        hook = target.manifest.get("hook")
        self.about = {**self.about, "target": str(targets), "target_hook": hook}

    @classmethod
    def beside(cls, inputs: Path | str, target_hook: str) -> PairedStore:
        """With the store of `target_hook` in the same folder, as a harvest of several has it."""
        for file in sorted(place(inputs).resolve().parent.glob(f"*/{MANIFEST}")):
            manifest = read_manifest(file, SCHEMA, WHAT)
            names = (manifest.get("hook") or {}).values()
            if manifest.get("kind") == KIND and target_hook in names:
                return cls(inputs, file.parent)
        raise BitlensError(
            f"There is no store of {target_hook} beside {inputs}: harvest both hook points into "
            "one folder."
        )

    def __repr__(self) -> str:
        return f"PairedStore({super().__repr__()} -> {self.targets!r})"

    def row_bytes(self) -> int:
        """Bytes of both hidden states"""
        return super().row_bytes() + self.targets.row_bytes()

    def shard(self, index: int, names: list[str] | None = None) -> dict[str, Tensor]:
        """Of `inputs`; `hidden` is that of both, `norm` infinite where the target's is outlying."""
        tensors = super().shard(index, names)
        both = [name for name in ("hidden", "norm") if name in tensors]
        target = self.targets.shard(index, both)
        if "hidden" in tensors:
            tensors["hidden"] = torch.cat([tensors["hidden"], target["hidden"]], 1)
        if "norm" in tensors:
            outlying = target["norm"] > self.targets.outlier_norm
            tensors["norm"] = tensors["norm"].masked_fill(outlying, torch.inf)
        return tensors
