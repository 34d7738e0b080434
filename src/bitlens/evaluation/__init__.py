"""One table of numbers about one autoencoder, on documents that it was not trained on.

A number is made of what was `Measured`. Numbers that belong together are a class in a file of their
own: annotated fields, and a function `measure` that gives their values. To add some, write such a
file and add its class to the bases of `Evaluation`.
"""

from bitlens.evaluation.evaluation import Evaluation, evaluate
from bitlens.evaluation.information import usual_covariance
from bitlens.evaluation.sparsity import latent_numbers

__all__ = ["Evaluation", "evaluate", "latent_numbers", "usual_covariance"]
