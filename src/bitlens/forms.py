"""What values of JSON, and tensors, must look like: a file may hold any."""

import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from types import FunctionType
from typing import Any

import torch

from bitlens.errors import BitlensError

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _is_name(value: Any) -> bool:
    """Of a file in the same folder: no path leads out of it."""
    return isinstance(value, str) and value not in ("", ".", "..") and not set(value) & set("/\\\0")


def _is_dtype(value: Any) -> bool:
    """The name of a kind of floating-point numbers."""
    return isinstance(value, str) and getattr(torch, value, None) in _FLOATS


# What a key holds in every manifest that has it. int: not negative; float: an int, too; a list
# holds such values, an object has these keys, of a tuple any form will do, and a function decides.
_HOOK = ({"module": str}, None)
_FORMS: dict[str, Any] = {
    **dict.fromkeys(("rows", "d_in", "d_sae", "n_latents", "d_out", "k", "zeros"), int),
    "std": float,
    "dtype": (_is_dtype, None),
    "mean": [float],
    "shards": [{"file": _is_name, "sha256": object, "rows": int}],
    "metadata": dict,
    "training": dict,
    "config": dict,
    "source": dict,
    "documents_of": ({"numbering": str, "texts": list}, None),
    "hook": _HOOK,
    "target_hook": _HOOK,
    "architecture": str,
    "model": (str, None),
    "revision": (str, None),
    "context_length": (float, None),
    "outlier_norm": (float, None),
    "test_fraction": (float, None),
    "n_latents_trained": (float, None),
    "documents": (float, None),
}


def fits(value: Any, form: Any) -> bool:
    """Whether a value of JSON is of this form, as `_FORMS` has them."""
    if isinstance(form, tuple):
        return any(fits(value, one) for one in form)
    if isinstance(form, list):
        return isinstance(value, list) and all(fits(item, form[0]) for item in value)
    if isinstance(form, dict):
        return isinstance(value, dict) and all(
            key in value and fits(value[key], inner) for key, inner in form.items()
        )
    if form is None:
        return value is None
    if isinstance(form, FunctionType):
        return form(value)
    if form is int:
        return type(value) is int and value >= 0  # a bool is none
    if form is float:  # which JSON's whole numbers can be larger than
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    return isinstance(value, form)


def refuse_others(values: Mapping[str, Any], path: Path, what: str) -> None:
    """BitlensError for a manifest of `what` with a value that is not of its form."""

    def damaged(reason: str) -> BitlensError:
        return BitlensError(f"{path} is damaged: {reason}; restore it or make {what} again.")

    for key, form in _FORMS.items():
        if key in values and not fits(values[key], form):
            raise damaged(f"'{key}' is {str(values[key])[:40]!r}, which is not of its kind")
    if values.get("metadata"):
        refuse_others(values["metadata"], path, what)
    if {"mean", "d_in"} <= set(values) and len(values["mean"]) != values["d_in"]:
        raise damaged("its mean has another width than its rows")
    if values.get("complete") and "shards" in values:
        rows = sum(shard["rows"] for shard in values["shards"])
        if values.get("rows", rows) != rows:
            raise damaged(f"its shards have {rows} rows, not {values['rows']}")


# Of a shard: how many dimensions a tensor has, and of what its numbers are.
_INTEGERS = (torch.int32, torch.int64)
_COLUMNS = {
    **dict.fromkeys(("token", "document", "position", "context"), (1, _INTEGERS)),
    "hidden": (2, _FLOATS),
    "norm": (1, _FLOATS),
    "usual": (1, (torch.bool,)),
    "bits": (2, (torch.uint64, torch.int64)),
    "context_tokens": (2, _INTEGERS),
}


def require_columns(
    tensors: Mapping[str, torch.Tensor],
    names: Collection[str],
    path: Path,
    rows: int,
    width: int | None = None,
) -> None:
    """BitlensError for a shard that lacks one of these tensors, or has one of another form than
    these rows, or of another width of `hidden` or `bits`, have."""
    for name in {*names, *tensors} & set(_COLUMNS):
        found = tensors.get(name)
        dims, kinds = _COLUMNS[name]
        if found is not None and found.dim() == dims and found.dtype in kinds:
            whole = name == "context_tokens" or len(found) == rows
            if whole and (name not in ("hidden", "bits") or width in (None, found.shape[1])):
                continue
        has = "lacks" if found is None else f"has {list(found.shape)} of {found.dtype} for"
        raise BitlensError(
            f"{path} is damaged: it {has} '{name}', and its manifest tells of {rows:,} rows; "
            "restore it or make its folder again."
        )
