"""The step function and the surrogate gradients that make it trainable.

The step is 1 where the pre-activation is above zero. Its derivative is zero almost everywhere, so
the backward pass uses a surrogate: with `g` the gradient of the loss in the bit and `w` a width per
latent,

| name      | dz                                        |                                        |
| --------- | ----------------------------------------- | -------------------------------------- |
| `clipped` | `g * (abs(z) < w)`                        | straight-through inside a window       |
| `sigmoid` | `g * s (1 - s) / w`, `s = sigmoid(z / w)` | the derivative of a sigmoid of width w |
| `ste`     | `g`                                       | plain straight-through                 |
| `paper`   | `g (1 - g)`                               | as in the code of arXiv 2509.20997     |
"""

from typing import Any

import torch
from torch import Tensor

from bitlens.options import Surrogate


class _Binarize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, width: Tensor, surrogate: Surrogate) -> Tensor:
        ctx.surrogate = surrogate
        if surrogate == "clipped":
            ctx.save_for_backward(z.abs() < width)
        elif surrogate == "sigmoid":
            ctx.save_for_backward(z, width)
        return (z > 0).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (g,) = gradients
        if ctx.surrogate == "clipped":
            (inside,) = ctx.saved_tensors
            g = g * inside
        elif ctx.surrogate == "sigmoid":
            z, width = ctx.saved_tensors
            s = torch.sigmoid(z / width)
            g = g * s * (1 - s) / width
        elif ctx.surrogate == "paper":
            g = g * (1 - g)
        return g, None, None


def binarize(z: Tensor, width: Tensor | float = 1.0, surrogate: Surrogate = "clipped") -> Tensor:
    """Step to 0 or 1 with a surrogate gradient.

    z `[..., n_latents]`; width `[n_latents]` or a number, in units of z.
    """
    return _Binarize.apply(z, torch.as_tensor(width, dtype=z.dtype, device=z.device), surrogate)  # pyright: ignore[reportReturnType]
