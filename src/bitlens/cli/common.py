"""What the commands share: types of arguments, and opening what they name."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from bitlens.devices import pick_device
from bitlens.errors import BitlensError
from bitlens.hidden.config import ModelConfig, TextConfig

if TYPE_CHECKING:
    from bitlens.autoencoders import Autoencoder
    from bitlens.bits.codes import Codes
    from bitlens.hidden import LanguageModel
    from bitlens.hidden.text import ContextReader
    from bitlens.information.intervals import Estimate

# a flag --no-NAME; its help says what that does
On = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]

ModelName = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
Files = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE ...")]
Source = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STORE")]
RunFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
CodesFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CODES")]
StoreFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="STORE")]


@dataclass(frozen=True)
class Search:
    """How the codes of an autoencoder are found, where that is not to be its own way."""

    coding: Literal["descent", "step"] | None = None
    """of a binary autoencoder: descent searches the bits, step takes those of its encoder; by
    default its own way"""
    flips: int | None = None
    """of a descent: at most so many flips a row, from the encoder's bits on; fewer are faster, 0 is
    the encoder alone"""

    def of(self, autoencoder: Any) -> Any:
        """The autoencoder, coded in this way."""
        from bitlens.autoencoders import BinaryAutoencoder

        if self.coding is None and self.flips is None:
            return autoencoder
        if not isinstance(autoencoder, BinaryAutoencoder):
            raise BitlensError(
                "--coding and --flips are for binary autoencoders, and this is a "
                f"{autoencoder.architecture}."
            )
        return autoencoder.coded(self.coding, self.flips)


SearchFlags = Annotated[Search, tyro.conf.arg(name="")]
TextFlags = Annotated[TextConfig, tyro.conf.arg(name="")]
ModelFlags = Annotated[ModelConfig, tyro.conf.arg(name="")]


def open_text(
    model: str, hooks: tuple[str, ...], text: TextConfig, test_fraction: float, loading: ModelConfig
) -> tuple[LanguageModel, ContextReader]:
    """A language model hooked at `hooks` and a reader of `text`."""
    from bitlens.hidden import LanguageModel

    options: dict[str, Any] = asdict(loading) | {"device": pick_device(loading.device)}
    language_model = LanguageModel.load(model, list(hooks), **options)
    return language_model, text.reader(language_model.tokenizer, test_fraction)


def open_pair(run: Path, store: Path, device: str, search: Search = Search()) -> Any:
    """An autoencoder and the store it reads; with a transcoder's target beside it."""
    from bitlens.autoencoders import Autoencoder
    from bitlens.hidden import ActivationStore, PairedStore

    autoencoder = search.of(Autoencoder.from_pretrained(run, pick_device(device)))
    if autoencoder.transcodes:
        return autoencoder, PairedStore.beside(store, autoencoder.output_hook or "")
    return autoencoder, ActivationStore(store)


def leave_report(run: Path, **known: Any) -> None:
    """Write the page about a run into its folder and say where it is, or why it is not there.

    known: what `write_report` takes.
    """
    from bitlens import show
    from bitlens.report import write_report

    try:
        path = write_report(run, **known)
    except BitlensError as error:
        show.warn(f"Without a report: {error}")
    except OSError as error:
        show.warn(f"Without a report: {run} cannot be written to ({error.strerror or error}).")
    else:
        show.say(f"Report: {path}")


def open_run(run: Path, codes: Codes, device: str = "cpu") -> Autoencoder:
    """The autoencoder that made these codes."""
    from bitlens.autoencoders import Autoencoder

    autoencoder = Autoencoder.from_pretrained(run, pick_device(device))
    codes.require_run(run, autoencoder.n_latents)
    return autoencoder


def open_reader(
    run: Path, codes: Codes, device: str, whole: bool = False
) -> tuple[LanguageModel, Autoencoder]:
    """The language model of these codes, hooked where the autoencoder that made them reads. whole:
    with its head, and hooked where a transcoder writes, too."""
    from bitlens.hidden import LanguageModel

    autoencoder = open_run(run, codes, device)
    hooks: Any = autoencoder.hooks if whole else autoencoder.hooks[:1]
    if not all(hooks) or codes.manifest.get("model") is None:
        raise BitlensError(
            f"{codes.path} comes from hidden states imported without their model, so no text can "
            "be read; search by row or by latents."
        )
    settings = {"device": pick_device(device), "causal": whole}
    return LanguageModel.again(codes.manifest, codes.path, hooks, **settings), autoencoder


def signed(estimate: Estimate, digits: int) -> str:
    """The number with its sign and half its interval; a star marks what is clearly not 0."""
    interval = f" ± {estimate.half:.{digits}f}" if estimate.known else ""
    return f"{estimate.value:+.{digits}f}{interval}{' *' if estimate.differs else ''}"


def flags_given(settings: Any, names: Collection[str]) -> list[str]:
    """Of these fields of a dataclass, as flags, those that are not at their defaults."""
    return [
        f"--{field.name.replace('_', '-')}"
        for field in fields(settings)
        if field.name in names and getattr(settings, field.name) != field.default
    ]
