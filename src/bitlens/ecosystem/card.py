"""The card of an autoencoder on the hub: what it is, how it was made, what was measured, how to use
it. Text from data is escaped, so that no name becomes markup."""

from __future__ import annotations

import contextlib
import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitlens import markup
from bitlens.autoencoders import Autoencoder
from bitlens.ecosystem.about import About
from bitlens.ecosystem.published import FIGURE
from bitlens.evaluation import Evaluation
from bitlens.hidden.hooks import KINDS
from bitlens.hub import is_name
from bitlens.options import BUNDLED
from bitlens.report import contents
from bitlens.report.kept import kept_evaluation
from bitlens.results import listed, plain
from bitlens.version import __version__

if TYPE_CHECKING:
    from jinja2 import Environment

MARKS = re.compile(r"[\\`*_\[\]<>|~&!$#]")  # what Markdown, HTML and mathematics are made of
LINKS = re.compile(r":(?=//)|(?<=www)\.", re.IGNORECASE)  # what is a link without any mark
BUNDLED_LICENCE = "mit"  # src/bitlens/bundled/README.md


class Marked(str):
    """Text that is Markdown already."""

    __slots__ = ()


def write(
    autoencoder: Autoencoder, folder: Path, repository: str, about: About, licence: str | None
) -> str:
    """The card of an autoencoder that `published.lay_out` gave and wrote into a folder -> its text.

    licence: of the language model, if known.
    """
    config, _ = contents.configuration(folder)
    metadata, evaluation = autoencoder.metadata, kept_evaluation(folder)
    where, special = contents.measured_on(evaluation, config) if evaluation else ("", [])
    named = metadata.get("model")
    on_hub = about.base_model or (named if is_name(named or "") else None)
    card = _templates().get_template("card.md")
    return _head(autoencoder, about, on_hub) + card.render(
        repository=repository,
        heading=contents.heading(config),
        autoencoder=autoencoder,
        hook=_read_here((metadata.get("hook") or {}).get("module")),
        lines=listed(Evaluation, evaluation["numbers"]) if evaluation else [],
        where=where,
        special=special,
        figure=FIGURE if (folder / FIGURE).exists() else None,
        made={**contents.made(config), "Settings": contents.settings(config)},
        named=named,
        loaded=on_hub or named,
        license=about.license,
        model_license=licence,
        version=__version__,
    )


def _head(autoencoder: Autoencoder, about: About, on_hub: str | None) -> str:
    """The card's YAML, by which the hub finds it."""
    from huggingface_hub import ModelCardData

    texts = (autoencoder.metadata.get("documents_of") or {}).get("texts") or []
    # NAME:CONFIGURATION (SPLIT), as a store records a dataset
    names = [re.split(r"[: ]", text)[0] for text in texts if isinstance(text, str)]
    datasets = about.datasets or dict.fromkeys(filter(is_name, names))
    kind = "transcoder" if autoencoder.transcodes else "autoencoder"
    data = ModelCardData(
        library_name="bitlens",
        tags=[
            "bitlens",
            f"{'binary' if autoencoder.binary else 'sparse'}-{kind}",
            "mechanistic-interpretability",
        ],
        base_model=on_hub,
        datasets=list(datasets) or None,
        license=about.license,
    )
    return f"---\n{data.to_yaml()}\n---\n\n"


def _read_here(hook: str | None) -> str | None:
    """The hook point, unless it is one of TransformerLens' that bitlens does not read."""
    kind = re.sub(r"^blocks\.\d+\.", "", hook or "")
    return hook if kind == hook or kind in KINDS else None


def licence_of(model: str | None) -> str | None:
    """What a language model in a folder says of its licence, in the head of its README.md."""
    from huggingface_hub.repocard import metadata_load

    if model == BUNDLED:
        return BUNDLED_LICENCE
    if not model:
        return None
    # what others wrote there may be no YAML
    with contextlib.suppress(Exception):
        licence = (metadata_load(Path(model, "README.md")) or {}).get("license")
        return licence if isinstance(licence, str) else None
    return None


def escaped(text: Any) -> str:
    """Text as Markdown shows it letter by letter, on one line."""
    return LINKS.sub(r"\\\g<0>", MARKS.sub(r"\\\g<0>", plain(str(text))))


def _code(text: Any) -> Marked:
    """Text in the letters of code, where nothing in it could end that."""
    line = plain(str(text))
    inside = line and line.strip() == line and not set("`|\\") & set(line)
    return Marked(f"`{line}`" if inside else escaped(line))


@functools.cache
def _templates() -> Environment:
    """All that is put into a template is escaped, unless it comes from a filter here."""
    templates = markup.environment(
        finalize=lambda value: value if isinstance(value, Marked) else escaped(value)
    )
    templates.filters |= {"code": _code, "python": lambda value: Marked(repr(value))}
    return templates
