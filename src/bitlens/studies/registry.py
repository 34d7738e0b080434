"""Which studies there are; imports nothing heavy, since the command line makes its help of it.

A study is a folder of its name. `config.py`, which imports nothing heavy either, holds its settings
as a dataclass `<Name>Config`; `study.py` holds `run(config, study) -> rows`, which opens the
`Study`, lets it measure cells, and finishes it with a function that draws figures of the rows; a
`summary(rows)`, if there is one, is shown as a table.
"""

from __future__ import annotations

import importlib

STUDIES = {
    "survey": "The whole job on your model and text: bits, numbers, features, meanings.",
    "synthetic": "Is the measured entropy the true one? Planted bits, recovered or not.",
    "sequence": "Entropy of hidden states along a text and through the layers of a model.",
    "icl": "In-context learning in bits: entropy, accuracy, labels by demonstrations.",
    "compare": "Binary and sparse autoencoders at one l0: bits, faithfulness, labels, stability.",
    "judges": "How good is each judge at planted meanings, and which latents do good ones find?",
}
"""What each study asks, by its name."""


def config_type(name: str) -> type:
    """The dataclass of the settings of a study."""
    module = importlib.import_module(f"bitlens.studies.{name}.config")
    return getattr(module, f"{name.capitalize()}Config")
