"""The judges that `bitlens interpret --judge` knows."""

from __future__ import annotations

import importlib
from dataclasses import fields
from typing import Any

from bitlens.comsem.settings import JudgeSettings

JUDGES = {
    "labels": "label_judge:LabelSettings",
    "embedding": "embedding_judge:EmbeddingSettings",
    "local": "local_judge:LocalSettings",
    "openai": "openai_judge:OpenAISettings",
}
"""module of this package and class of settings"""


def settings_class(name: str) -> type[JudgeSettings]:
    """The settings that this judge has."""
    module, _, settings = JUDGES[name].partition(":")
    return getattr(importlib.import_module(f"bitlens.comsem.{module}"), settings)


def settings_of(name: str, values: Any) -> JudgeSettings:
    """This judge's own settings, from an object that has those of all judges."""
    settings = settings_class(name)
    return settings(**{field.name: getattr(values, field.name) for field in fields(settings)})
