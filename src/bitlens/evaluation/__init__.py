"""One table of numbers about one autoencoder, on documents that it was not trained on.

A number is made of what was `Measured`. Numbers that belong together are a class: annotated fields,
and a function `measure` that gives their values. To add some, write such a class in a file of its
own and add it to the bases of `Evaluation`.
"""

from bitlens.evaluation.evaluation import Evaluation, evaluate
from bitlens.evaluation.numbers import latent_numbers

__all__ = ["Evaluation", "evaluate", "latent_numbers"]
