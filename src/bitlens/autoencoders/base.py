"""The interface that all autoencoders share: raw hidden states in, codes, raw hidden states out."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from bitlens.autoencoders.formats import registry as formats
from bitlens.autoencoders.formats.foreign import Foreign
from bitlens.autoencoders.registry import KNOWN
from bitlens.autoencoders.settings import Settings
from bitlens.bits.packed import PackedBits
from bitlens.errors import BitlensError
from bitlens.files import read_manifest, read_tensors, required, write_json, write_tensors
from bitlens.remote import is_remote, place

if TYPE_CHECKING:
    from bitlens.autoencoders.hooked import Hooked

SCHEMA = 2  # 2: codings of binary autoencoders
CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
STANDARDISATION = {"mean", "scale", "mean_out", "scale_out"}


class Autoencoder(nn.Module):
    """Hidden state -> linear -> code -> linear -> reconstruction.

    The parameters `W_enc [d_in, n_latents]`, `b_enc`, `W_dec [n_latents, d_out]`, `b_dec` live in
    model space; the buffers `mean [d_in]` and `scale` (one number) map raw hidden states there and
    back. Every method accepts any leading dimensions. A subclass defines `code`.
    """

    architecture: ClassVar[str]
    setting_names: ClassVar[tuple[str, ...]] = ()  # what `__init__` takes beside the two widths
    defaults_of_older_files: ClassVar[dict[str, Any]] = {}  # what a file means that lacks a setting
    subtracts_b_dec: bool = False  # from the input, before encoding; of an imported one, its own
    binary: ClassVar[bool] = False  # codes are 0 and 1, and there is a canonical form
    transcodes: ClassVar[bool] = False  # predicts another hook point than the one it reads

    def __init__(self, d_in: int, n_latents: int, **settings: Any) -> None:
        """settings: those of `setting_names`, kept in `cfg.json`; `d_out` is d_in unless given."""
        super().__init__()
        if d_in < 1 or n_latents < 1:
            counts = f"{d_in} and {n_latents}"
            raise BitlensError(
                f"An autoencoder needs an input and a latent at least, not {counts}."
            )
        self.d_in, self.n_latents, self.settings = d_in, n_latents, settings
        self.d_out: int = settings.get("d_out", d_in)
        self.metadata: dict[str, Any] = {}
        self.W_enc = nn.Parameter(torch.empty(d_in, n_latents))
        self.b_enc = nn.Parameter(torch.empty(n_latents))
        self.W_dec = nn.Parameter(torch.empty(n_latents, self.d_out))
        self.b_dec = nn.Parameter(torch.empty(self.d_out))
        self.mean = nn.Buffer(torch.zeros(d_in))
        self.scale = nn.Buffer(torch.ones(()))
        self.initialise(torch.Generator().manual_seed(0))

    @classmethod
    def build(cls, d_in: int, d_out: int, settings: Settings) -> Self:
        """A new one for a training run, not yet initialised."""
        own = {"d_out": d_out, **asdict(settings)}
        return cls(d_in, settings.n_latents, **{name: own[name] for name in cls.setting_names})

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Uniform weights of width 1/sqrt(fan-in), in the order W_enc, b_enc, W_dec; b_dec is 0."""
        for tensor, fan_in in (
            (self.W_enc, self.d_in),
            (self.b_enc, self.d_in),
            (self.W_dec, self.n_latents),
        ):
            uniform = torch.rand(tensor.shape, generator=generator) * 2 - 1
            tensor.copy_(uniform * fan_in**-0.5)
        self.b_dec.zero_()

    def memory(self) -> dict[str, int]:
        """Bytes of the weights, by what they are for."""
        tensors = self.state_dict().values()
        return {"weights": sum(each.nbytes for each in tensors)}

    @property
    def output_scale(self) -> Tensor:
        """What one unit that the decoder writes is in the model's own units."""
        return self.get_buffer("scale_out" if self.transcodes else "scale")

    @property
    def hooks(self) -> list[str | None]:
        """The hook point that it reads and, of a transcoder, the one that it writes to; None for
        one that is not known."""
        kinds = ("hook", "target_hook") if self.transcodes else ("hook",)
        return [(self.metadata.get(kind) or {}).get("module") for kind in kinds]

    @property
    def output_hook(self) -> str | None:
        """The hook point that the decoder writes to; None where it is not known."""
        return self.hooks[-1]

    @property
    def outlier_norm(self) -> float:
        """Hidden states above this norm are left out of training; inf where none are."""
        limit = self.metadata.get("outlier_norm")
        return math.inf if limit is None else float(limit)

    @property
    def context_length(self) -> int | None:
        """Tokens of a context that it was trained on, where that is known"""
        return self.metadata.get("context_length")

    # --- model space ------------------------------------------------------------------------------

    def pre_activations(self, x: Tensor) -> Tensor:
        """Standardised `[..., d_in]` -> float32 `[..., n_latents]`, whatever the dtype: a threshold
        in bf16 flips bits."""
        with torch.autocast(x.device.type, enabled=False):
            x = x - self.b_dec if self.subtracts_b_dec else x
            return x.float() @ self.W_enc.float() + self.b_enc.float()

    def code(self, z: Tensor) -> Tensor:
        """Pre-activations -> code, both `[..., n_latents]`."""
        raise NotImplementedError

    def reconstruct(self, codes: Tensor) -> Tensor:
        """Codes -> standardised reconstruction `[..., d_out]`."""
        codes = codes if codes.is_floating_point() else codes.float()
        return codes @ self.W_dec.to(codes.dtype) + self.b_dec.to(codes.dtype)

    # --- raw space --------------------------------------------------------------------------------

    def standardise(self, x: Tensor) -> Tensor:
        """Raw hidden states `[..., d_in]` -> the same in model space, float32."""
        if x.shape[-1] != self.d_in:
            hook = self.hooks[0] or "another hook point"
            widths = f"hidden states of width {self.d_in}, not {x.shape[-1]}"
            raise BitlensError(f"This autoencoder takes {widths}; it was trained on {hook}.")
        return (x.to(self.mean.device).float() - self.mean) / self.scale

    def standardise_rows(self, rows: Tensor) -> Tensor:
        """Raw training rows, a transcoder's with their targets beside them -> in model space."""
        return self.standardise(rows)

    def pair(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Raw rows of a store -> the input `[..., d_in]` and its target `[..., d_out]`."""
        return rows, rows

    def encode(self, x: Tensor) -> Tensor:
        """Raw hidden states `[..., d_in]` -> codes `[..., n_latents]`, float32."""
        return self.code(self.pre_activations(self.standardise(x)))

    def encode_bits(self, x: Tensor) -> PackedBits:
        """Raw hidden states `[..., d_in]` -> one packed row each: which latents are not zero."""
        return PackedBits.pack(self.encode(x))

    def on_rates(self, rates: Tensor) -> Tensor:
        """Firing rates in canonical form, given how often each latent is not zero `[n_latents]`.
        Every `l0`, `dense` and firing rate that bitlens reports is of these."""
        return rates

    def decode(self, codes: Tensor, x: Tensor | None = None) -> Tensor:
        """Codes `[..., n_latents]` -> raw hidden states `[..., d_out]`. x: what was encoded, which
        only a skip transcoder needs."""
        return self.reconstruct(codes) * self.scale + self.mean

    def forward(self, x: Tensor) -> Tensor:
        """Raw hidden states `[..., d_in]` -> their reconstruction `[..., d_out]`, float32."""
        return self.decode(self.encode(x), x)

    def canonical(self, rates: Tensor) -> Autoencoder:
        """The same function with "on" as every latent's rare state, by the firing rates
        `[n_latents]`."""
        return self

    # --- in a model -------------------------------------------------------------------------------

    def hook(
        self,
        model: Any,
        *,
        replace: bool = False,
        use_error_term: bool = False,
        change: Callable[[Tensor], Tensor] | None = None,
        record: bool = True,
        positions: Any = None,
        tokenizer: Any = None,
        max_norm: float | None = None,
    ) -> AbstractContextManager[Hooked]:
        """Within the block the codes of what passes the hook point are recorded, in every pass of a
        transformers model, `generate` too. The model's output stays as it is, bit by bit.

        replace: the reconstruction passes on instead. use_error_term: and what it lacks is added,
        so that only changed codes change the output, and gradients pass through the codes alone.
        change: codes `[rows, n_latents]` -> what is decoded instead of them. record: keep the codes
        of every pass. positions: as for `intervene`. tokenizer: the model's, for its special
        tokens; without it those that its configuration names. Special tokens, padding, and hidden
        states of a norm above max_norm (default: the limit of the training) are neither encoded nor
        replaced. BitlensError for a model that lacks the hook point.
        """
        from bitlens.autoencoders.hooked import Hooked, hooked

        limit = self.outlier_norm if max_norm is None else float(max_norm)
        done = Hooked(self, replace, use_error_term, change, record, limit)
        return hooked(done, model, positions, tokenizer)

    def extra_repr(self) -> str:
        """What `repr` says in the brackets."""
        shown = {"d_in": self.d_in, "n_latents": self.n_latents, **self.settings}
        if hook := self.hooks[0]:
            shown["hook"] = hook
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())

    # --- disk -------------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """What `cfg.json` holds; beside our own, the keys that SAELens asks for, which opens a run
        after `import bitlens.saelens`."""
        return {
            "schema": SCHEMA,
            "architecture": self.architecture,
            "d_in": self.d_in,
            "d_sae": self.n_latents,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": self.subtracts_b_dec,
            "normalize_activations": "none",
            **self.settings,
            "metadata": self.metadata,
        }

    def save(self, folder: Path | str) -> None:
        """Write `sae_weights.safetensors` and then `cfg.json`, each atomically.

        The names are SAELens', the weights are not: they are of standardised hidden states, as
        trained, to the last bit. `bitlens.ecosystem.saelens` folds them."""
        if not is_remote(folder := place(folder)):
            folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / WEIGHTS, {k: v.float().cpu() for k, v in self.state_dict().items()})
        write_json(folder / CONFIG, self.config())

    @classmethod
    def from_pretrained(
        cls,
        source: Path | str,
        device: str = "cpu",
        *,
        revision: str | None = None,
        subfolder: str | None = None,
    ) -> Self:
        """Load a folder written by `save`, or one of another library, told by its files
        (`docs/ecosystem-import.md`); from `Autoencoder`, whichever architecture it holds.

        source: a folder, or a repository of the hub, `owner/name`, of which `revision` is a branch,
        tag or commit; `owner/name/folder` is `owner/name` with that `subfolder`. An imported one
        has mean 0 and the scale of its own normalisation, mostly 1.
        """
        folder = formats.folder_of(source, revision=revision, subfolder=subfolder)
        found = formats.read(folder, CONFIG)
        model = cls._of_own(folder) if found is None else cls._of_another(found)
        return model.to(device).eval()

    @classmethod
    def _of_own(cls, folder: Path) -> Self:
        """What `save` wrote."""
        path = folder / CONFIG
        config = read_manifest(path, SCHEMA, "an autoencoder")
        kind = cls._class_of(required(config, "architecture", path), path)
        d_in, n_latents = required(config, "d_in", path), required(config, "d_sae", path)
        settings = {**kind.defaults_of_older_files, **config}
        own = {name: required(settings, name, path) for name in kind.setting_names}
        file = folder / WEIGHTS
        found = read_tensors(file)
        # before anything is made as large as the settings say
        shapes = {"W_enc": (d_in, n_latents), "W_dec": (n_latents, own.get("d_out", d_in))}
        _require(found, shapes, file, kind.architecture)
        model = kind(d_in, n_latents, **own)
        model.subtracts_b_dec = bool(config.get("apply_b_dec_to_input", kind.subtracts_b_dec))
        model._take({name: found[name] for name in model.state_dict() if name in found}, file)
        model.metadata = config.get("metadata", {})
        return model

    @classmethod
    def _of_another(cls, found: Foreign) -> Self:
        """What another library wrote. Its normalisation is kept as `scale`."""
        kind = cls._class_of(found.architecture, found.file)
        d_in, n_latents = found.tensors["W_enc"].shape
        target = {"d_out": found.tensors["W_dec"].shape[1]} if kind.transcodes else {}
        model = kind(d_in, n_latents, **found.settings, **target)
        model.subtracts_b_dec = found.subtracts_b_dec
        model.scale.fill_(found.scale)
        if model.transcodes:
            model.get_buffer("scale_out").fill_(found.scale_out)
        own = {k: v for k, v in model.state_dict().items() if k in STANDARDISATION}
        model._take({**own, **found.tensors}, found.file)
        model.metadata = {**found.metadata, "imported_from": found.tool}
        return model

    def _take(self, tensors: dict[str, Tensor], file: Path) -> None:
        """Load the tensors of a file, which must be those of this model."""
        shapes = {name: tuple(own.shape) for name, own in self.state_dict().items()}
        _require(tensors, shapes, file, self.architecture)
        self.load_state_dict(tensors)

    @classmethod
    def _class_of(cls, architecture: str, path: Path) -> type[Self]:
        """The class of this name, which is `cls` or a subclass of it."""

        def fits(name: str) -> bool:
            return issubclass(KNOWN[name].load_model(), cls)

        if architecture not in KNOWN or not fits(architecture):
            fitting = ", ".join(filter(fits, sorted(KNOWN)))
            raise BitlensError(f"{path} has architecture '{architecture}', not one of: {fitting}.")
        return KNOWN[architecture].load_model()


def _require(
    tensors: dict[str, Tensor], shapes: dict[str, tuple[int, ...]], file: Path, architecture: str
) -> None:
    """BitlensError if a file lacks one of these tensors, or has it in another shape."""
    for name, shape in shapes.items():
        if name not in tensors:
            raise BitlensError(f"{file} lacks '{name}', which a {architecture} needs.")
        if tuple(tensors[name].shape) != shape:
            d_in, n_latents = shapes["W_enc"]
            found = f"{list(tensors[name].shape)}, not {list(shape)}"
            raise BitlensError(
                f"{file} does not fit its {architecture} of width {d_in} and {n_latents} latents: "
                f"'{name}' has the shape {found}."
            )
