"""HTML from templates: whatever is put into one is text, and reads as text."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from bitlens.results import plain, token

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, **values: Any) -> str:
    """A template of this package, filled."""
    return _templates().get_template(template).render(values)


def source(template: str) -> str:
    """A template as it stands in its file."""
    templates = _templates()
    assert templates.loader is not None
    return templates.loader.get_source(templates, template)[0]


@functools.cache
def _templates() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("bitlens"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"plain": plain, "token": token}
    return templates
