"""HTML from templates: whatever is put into one is text, and reads as text."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitlens.results import plain, token

if TYPE_CHECKING:
    from jinja2 import Environment


TEMPLATES = Path(__file__).parent / "templates"
PALETTE, ICON = (TEMPLATES / name for name in ("palette.css", "icon.svg"))
LOOK = (PALETTE, ICON)  # of every page


def render(template: str, **values: Any) -> str:
    """A template of this package, filled."""
    return _templates().get_template(template).render(values)


def environment(**options: Any) -> Environment:
    """The templates of this package, in which a value that is missing is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("bitlens")
    about = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    return Environment(loader=loader, **about, **options)


@functools.cache
def _templates() -> Environment:
    templates = environment(autoescape=True)
    templates.filters |= {"plain": plain, "token": token}
    return templates
