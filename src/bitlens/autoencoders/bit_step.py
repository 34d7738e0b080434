"""The training step of a BAE on a CPU: the gradients of `binary_losses`, from packed bits.

With the clipped surrogate only the encoder needs a whole product. The reconstruction sums the
decoder rows of the bits that are on, and the gradient passes where a pre-activation lies in the
window, a few percent of all. A batch with many bits on takes whole products instead.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bitlens.autoencoders.binary import BinaryAutoencoder
from bitlens.autoencoders.objective import Losses, Price, batch_price
from bitlens.bits import products
from bitlens.bits.packed import PackedBits
from bitlens.bits.statistics import covariance

# Share of pairs (row, latent) on or in the window from which on whole products are faster.
WHOLE_PRODUCTS_FROM = 0.4


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

    x: standardised `[n, d_in]`. window: standard deviations of the pre-activations `[n_latents]` ->
    the surrogate's window. per_price, per_pair: weights of the loss's terms. bf16: round the
    factors of whole products, not their sums.

    -> (terms of the loss, firing rates `[n_latents]`)
    """
    x, n = x.contiguous(), len(x)
    z = _product(x, model.W_enc, bf16).add_(model.b_enc)
    width = window(torch.from_numpy(products.column_std(z.numpy())))
    on, inside = PackedBits.step(z), PackedBits.window(z, width)
    p = on.column_counts() / n
    sparse = (
        int(on.row_counts().sum() + inside.row_counts().sum()) < WHOLE_PRODUCTS_FROM * z.numel()
    )

    if sparse:
        x_hat = torch.from_numpy(products.gather_sums(on.numpy(), model.W_dec.numpy()))
    else:
        x_hat = _product(on.unpack(), model.W_dec, bf16)
    error = x_hat.add_(model.b_dec).sub_(x)
    mse = error.square().mean()
    error *= 2 / error.numel()
    cost, slope = _price_and_slope(p, n, price, per_price)
    penalty, pull = mse.new_zeros(()), None
    if per_pair:
        penalty, pull = covariance(on)
        penalty, pull = per_pair * penalty, pull.mul_(per_pair)

    gradients = [_gradient(parameter) for parameter in (model.W_enc, model.b_enc, model.W_dec)]
    if sparse:
        products.backward(
            x.numpy(),
            error.numpy(),
            on.transpose().numpy(),
            inside.transpose().numpy(),
            model.W_dec.numpy(),
            slope.numpy(),
            None if pull is None else pull.numpy(),
            [gradient.numpy() for gradient in gradients],
        )
    else:
        dz = _product(error, model.W_dec.T, bf16).add_(slope)
        dz = (dz if pull is None else dz.add_(pull)).mul_(inside.unpack())
        whole = _product(x.T, dz, bf16), dz.sum(0), _product(on.unpack().T, error, bf16)
        for gradient, value in zip(gradients, whole, strict=True):
            gradient.copy_(value)
    _gradient(model.b_dec).copy_(error.sum(0))
    return Losses(mse + cost + penalty, mse, cost, penalty, mse.new_zeros(())), p


def _product(a: Tensor, b: Tensor, bf16: bool) -> Tensor:
    """float32 product; with bf16 its factors may be rounded, where the processor has units for that
    (AMX), its sums not."""
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
    """The weighted price of the firing rates p `[n_latents]`, and its slope in any one bit of each
    latent, float32 `[n_latents]`."""
    with torch.enable_grad():
        rates = p.clone().requires_grad_()
        cost = weight * batch_price(rates, n, price)
        (slope,) = torch.autograd.grad(cost, rates)
    return cost.detach(), slope / n
