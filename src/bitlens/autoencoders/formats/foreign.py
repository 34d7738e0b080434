"""What the folder of another library holds, in bitlens' own terms, and what all readers share.

Nothing that is read here can run code: JSON, safetensors, arrays without objects, and PyTorch files
by `weights_only`, of tensors alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import torch
from torch import Tensor

from bitlens import memory
from bitlens.cache import local
from bitlens.errors import BitlensError
from bitlens.files import read_json, read_tensors
from bitlens.hidden.hooks import names_elsewhere
from bitlens.results import plain

WHAT = "an autoencoder"
MOST = 3e38  # of float32


class Foreign(NamedTuple):
    """An autoencoder of another library: `x_hat = code((x / scale) W_enc + b_enc) W_dec + b_dec`,
    times `scale_out`."""

    tool: str
    """the library"""
    file: Path
    """where its tensors are"""
    architecture: str
    """as bitlens calls it"""
    tensors: dict[str, Tensor]
    """as bitlens has them: W_enc `[d_in, n_latents]`, b_enc, W_dec `[n_latents, d_out]`, b_dec, and
    the architecture's own"""
    metadata: dict[str, Any]
    """`hook`, `target_hook`, `model`, `context_length`, `prepend_bos`, where they are known"""
    settings: dict[str, Any] = {}  # noqa: RUF012
    """the architecture's, but for the width of a transcoder's target"""
    subtracts_b_dec: bool = False
    """from the input, before encoding"""
    scale: float = 1.0
    scale_out: float = 1.0


class Config(dict[str, Any]):
    """Settings, and the file that they are from."""

    def __init__(self, settings: Mapping[str, Any], path: Path) -> None:
        super().__init__(settings)
        self.path = path

    @classmethod
    def read(cls, path: Path) -> Config:
        """A JSON object; BitlensError if it is missing, damaged or something else."""
        config = read_json(path, WHAT)
        if not isinstance(config, dict):
            raise BitlensError(f"{path} holds no settings of {WHAT}; restore it.")
        return cls(config, path)

    def part(self, key: str) -> Config:
        """The object below a key; an empty one where there is none."""
        value = self.get(key)
        return Config(value if isinstance(value, dict) else {}, self.path)

    def wanted(self, key: str, kind: type) -> Any:
        """The value of a key, which must be there and of this kind; a float, a number."""
        value = self.get(key)
        usable = isinstance(value, kind) and isinstance(value, bool) is (kind is bool)
        if not (is_number(value) if kind is float else usable):
            found = "lacks the key" if value is None else f"has {str(value)[:40]!r} for"
            raise BitlensError(f"{self.path} {found} '{key}'; restore it or fetch it again.")
        return value

    def honour(self, **allowed: tuple[Any, ...]) -> None:
        """BitlensError for a setting that has another value than those that are read here. A key
        that is not there has the first."""
        for key, values in allowed.items():
            if (value := self.get(key, values[0])) not in values:
                known = ", ".join(repr(each) for each in dict.fromkeys(values) if each is not None)
                raise BitlensError(
                    f"{self.path} has {key} {value!r}, which bitlens does not honour, only {known}."
                )

    def refuse_unknown(self, known: Iterable[str]) -> None:
        """BitlensError for keys that may change what is computed: those not known, unless off."""
        off = (None, False, "none", "", 0, {}, [])
        strange = [key for key, value in self.items() if key not in known and value not in off]
        if strange:
            keys = ", ".join(f"'{key}'" for key in sorted(strange))
            raise BitlensError(
                f"{self.path} has {keys}, which this bitlens does not know and so cannot honour; "
                "upgrade bitlens."
            )

    def require_widths(self, tensors: Mapping[str, Tensor], **widths: int | None) -> None:
        """BitlensError where the tensors have another `d_in`, `n_latents` or `d_out` than the
        settings say; None where they do not."""
        d_in, n_latents = tensors["W_enc"].shape
        actual = {"d_in": d_in, "n_latents": n_latents, "d_out": tensors["W_dec"].shape[1]}
        for name, width in widths.items():
            if width is not None and width != actual[name]:
                raise BitlensError(
                    f"{self.path} says {name} {width!r}, but its tensors have {actual[name]}; "
                    "restore them or fetch them again."
                )


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value of JSON is a number that float32 has."""
    return type(value) in (int, float) and abs(value) < MOST


def given_scale(config: Mapping[str, Any], about: Mapping[str, Any] = {}) -> float | None:
    """What hidden states are divided by, where the settings hold its inverse by hand."""
    factor = config.get("norm_scaling_factor", about.get("norm_scaling_factor"))
    return 1 / factor if is_number(factor) and factor > 1 / MOST else None


def described(
    model: Any = None, hook: Any = None, target: Any = None, context: Any = None, bos: Any = None
) -> dict[str, Any]:
    """Metadata as bitlens has it, of what a library says, where that is of its kind. hook, target:
    names of places, by any naming."""
    metadata = {
        "model": model if isinstance(model, str) else None,
        "hook": names_elsewhere(hook),
        "context_length": context if type(context) is int else None,
        "prepend_bos": bos if isinstance(bos, bool) else None,
    }
    return metadata | ({"target_hook": names_elsewhere(target)} if target else {})


def read_weights(file: Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors, .npz, .pt or .pth file."""
    if file.suffix == ".safetensors":
        return read_tensors(file)
    if not file.exists():
        raise BitlensError(f"{file} is missing; restore it or fetch its folder again.")
    return local(file, _of_arrays if file.suffix == ".npz" else _of_torch)


def _of_arrays(file: Path) -> dict[str, Tensor]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except Exception as error:  # of the kinds that a file of any content can lead to
        memory.refuse(error, file)
        raise BitlensError(
            f"{file} does not hold arrays of numbers alone ({plain(str(error))[:200]}), so it is "
            "not read."
        ) from error


def _of_torch(file: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of the kinds that a file of any content can lead to
        memory.refuse(error, file)
        raise BitlensError(
            f"{file} does not hold tensors alone, so it is not read, and nothing in it was run; "
            "ask for a safetensors file."
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(v, Tensor) for v in tensors.values()):
        raise BitlensError(f"{file} does not hold tensors by their names, so it is not read.")
    return {str(name): tensor for name, tensor in tensors.items()}


def renamed(
    tensors: Mapping[str, Tensor], names: Mapping[str, str], file: Path, unused: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Tensors under bitlens' names, float32; BitlensError for one that lacks, or that is not known.

    names: of each, the library's; `name.T` is transposed. unused: what may be there, too.
    """
    found = {}
    known = {name.removesuffix(".T") for name in names.values()}.union(unused)
    if strange := ", ".join(f"'{name}'" for name in sorted(tensors.keys() - known)):
        raise BitlensError(f"{file} has tensors that bitlens does not know here: {strange}.")
    for own, name in names.items():
        key = name.removesuffix(".T")
        if key not in tensors:
            raise BitlensError(f"{file} lacks the tensor '{key}'; restore it or fetch it again.")
        tensor = _numbers(tensors[key], key, file)
        if own.startswith("W_") and tensor.dim() != 2:
            shape = list(tensor.shape)
            raise BitlensError(f"{file} has '{key}' of the shape {shape}, which is no matrix.")
        found[own] = (tensor.T if name != key else tensor).contiguous()
    _require_shapes(found, file)
    return found


def _numbers(tensor: Tensor, key: str, file: Path) -> Tensor:
    """The same in float32; BitlensError for what is no plain array of floating-point numbers, for
    NaN, and in a matrix for infinity."""
    plain_array = tensor.layout == torch.strided and not tensor.is_nested and tensor.is_cpu
    if not plain_array or not tensor.is_floating_point():
        kind = f"{tensor.dtype}".removeprefix("torch.")
        raise BitlensError(
            f"{file} has '{key}' as {kind} on {tensor.device}, which is no array of floating-point "
            "numbers; ask for weights in float32, float16 or bfloat16."
        )
    # a file of a few bytes may say that one number is a matrix of any size
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise BitlensError(f"{file} has fewer numbers than the shape of '{key}' says.")
    found = tensor.detach().float()
    if found.isnan().any() or (found.dim() == 2 and found.isinf().any()):
        raise BitlensError(
            f"{file} has '{key}' with NaN or infinity in it, so what it computes would be neither; "
            "fetch it again, or ask its authors for another."
        )
    return found


def _require_shapes(tensors: Mapping[str, Tensor], file: Path) -> None:
    """BitlensError for tensors that do not fit `W_enc` and `W_dec`."""
    d_in, n_latents = tensors["W_enc"].shape
    d_out = tensors["W_dec"].shape[1]
    shapes = {"W_enc": [d_in, n_latents], "W_dec": [n_latents, d_out], "W_skip": [d_in, d_out]}
    shapes["b_dec"] = [d_out]
    for name, tensor in tensors.items():
        shape, expected = list(tensor.shape), shapes.get(name, [n_latents])
        if shape != expected and (name, shape) != ("threshold", []):
            raise BitlensError(
                f"{file} does not fit together: '{name}' has the shape {shape}, not {expected}."
            )


def fold_decoder_norms(tensors: dict[str, Tensor], *scaled: str) -> None:
    """Give decoder rows unit norm and codes their lengths, in place; the reconstruction stays. Also
    scaled: further tensors in units of codes."""
    norms = tensors["W_dec"].norm(dim=1)
    tensors["W_dec"] = tensors["W_dec"] / norms.clamp_min(1e-12)[:, None]
    for name in ("W_enc", "b_enc", *scaled):
        tensors[name] = tensors[name] * norms


def jumps(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a JumpReLU that rectifies, too: no threshold below 0, one for each latent."""
    threshold = tensors["threshold"].clamp_min(0)
    return {**tensors, "threshold": threshold.expand_as(tensors["b_enc"]).contiguous()}
