"""The training step of a BAE on a CPU: the gradients of `binary_losses`, written out, from packed bits.

With the clipped surrogate only the encoder needs a whole product. The reconstruction sums the decoder rows of the bits
that are on, and the gradient passes where a pre-activation lies in the window, a few percent of all. A batch with many
bits on takes whole products instead.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from bitlens.autoencoders import BinaryAutoencoder
from bitlens.bits import products
from bitlens.bits.packed import PackedBits
from bitlens.bits.statistics import covariance
from bitlens.training.objective import Losses, Price, batch_price

DENSE = 0.4  # share of pairs (row, latent) on or in the window beyond which whole products are faster


@torch.no_grad()
def bit_step(
    model: BinaryAutoencoder,
    x: Tensor,
    window: Callable[[Tensor], Tensor],
    price: Price,
    per_price: float,
    per_pair: float,
    bf16: bool = False,
) -> tuple[Losses, Tensor]:
    """Leave the loss's gradients in the parameters, whose buffers are kept from step to step.

    x: standardised `[n, d_in]`. window: standard deviations of the pre-activations `[n_latents]` -> the surrogate's
    window. per_price, per_pair: weights of the loss's terms. bf16: round the factors of whole products, not their sums.

    -> (terms of the loss, firing rates `[n_latents]`)
    """
    n, d_in = x.shape
    z = _product(x, model.W_enc, bf16).add_(model.b_enc)
    width = window(torch.from_numpy(products.column_std(z.numpy())))
    on = PackedBits.step(z)
    inside = PackedBits(torch.from_numpy(products.pack_window(z.numpy(), width.numpy()).view(np.int64)), on.n_latents)
    p = on.column_counts() / n
    events = int(on.row_counts().sum() + inside.row_counts().sum())
    sparse = events < DENSE * z.numel()
    h = None if sparse else on.unpack()

    x_hat = (
        torch.from_numpy(products.gather_sums(on.numpy(), model.W_dec.numpy()))
        if h is None
        else _product(h, model.W_dec, bf16)
    )
    error = x_hat.add_(model.b_dec).sub_(x)
    mse = error.square().mean()
    error *= 2 / (n * d_in)
    cost, slope = _price_and_slope(p, n, price, per_price)
    penalty, pull = covariance(on) if per_pair else (mse.new_zeros(()), None)
    pull = None if pull is None else pull.mul_(per_pair)

    to_W_enc, to_b_enc, to_W_dec, to_b_dec = (
        _gradient(p) for p in (model.W_enc, model.b_enc, model.W_dec, model.b_dec)
    )
    if h is None:
        columns = (bits.transpose().numpy() for bits in (on, inside))
        out = (to_W_enc.numpy(), to_b_enc.numpy(), to_W_dec.numpy())
        more = None if pull is None else pull.numpy()
        products.backward(x.numpy(), error.numpy(), *columns, model.W_dec.numpy(), slope.numpy(), more, out)
    else:
        dz = _product(error, model.W_dec.T, bf16).add_(slope)
        dz = (dz if pull is None else dz.add_(pull)).mul_(inside.unpack())
        to_W_enc.copy_(_product(x.T, dz, bf16))
        to_b_enc.copy_(dz.sum(0))
        to_W_dec.copy_(_product(h.T, error, bf16))
    to_b_dec.copy_(error.sum(0))
    penalty = per_pair * penalty
    return Losses(mse + cost + penalty, mse, cost, penalty, mse.new_zeros(())), p


def _product(a: Tensor, b: Tensor, bf16: bool) -> Tensor:
    """float32 product; with bf16 its factors are rounded and its sums kept in float32, where the processor can."""
    if not bf16:
        return a @ b
    former = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        return a @ b
    finally:
        torch.set_float32_matmul_precision(former)


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.empty_like(parameter)
    return parameter.grad


def _price_and_slope(p: Tensor, n: int, price: Price, weight: float) -> tuple[Tensor, Tensor]:
    """The weighted price of the firing rates p, and its slope in any one bit of each latent, float32 `[n_latents]`"""
    with torch.enable_grad():
        rates = p.float().requires_grad_()
        cost = weight * batch_price(rates, n, price)
        (slope,) = torch.autograd.grad(cost, rates)
    return cost.detach(), slope / n
