"""The autoencoders: one interface, exact canonical forms, exact files."""

import json

import pytest
import torch

from bitlens.autoencoders import (
    Autoencoder,
    BatchTopKAutoencoder,
    BinaryAutoencoder,
    GatedAutoencoder,
    JumpReLUAutoencoder,
    PCAAutoencoder,
    RandomAutoencoder,
    ReLUAutoencoder,
    SkipTranscoder,
    SparseAutoencoder,
    TopKAutoencoder,
    Transcoder,
)
from bitlens.autoencoders.step import binarize
from bitlens.errors import BitlensError
from bitlens.files import read_tensors, write_tensors
from bitlens.options import Surrogate
from bitlens.seeding import generator

D, LATENTS = 7, 20


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


KINDS = {
    "bae": (BinaryAutoencoder, LATENTS, {"coding": "step"}),
    "random": (RandomAutoencoder, LATENTS, {"coding": "step"}),
    "relu": (ReLUAutoencoder, LATENTS, {}),
    "gated": (GatedAutoencoder, LATENTS, {}),
    "jumprelu": (JumpReLUAutoencoder, LATENTS, {}),
    "topk": (TopKAutoencoder, LATENTS, {"k": 3}),
    "batch_topk": (BatchTopKAutoencoder, LATENTS, {"k": 3}),
    "pca": (PCAAutoencoder, 5, {}),
    "transcoder": (Transcoder, LATENTS, {"k": 3, "d_out": D}),
    "skip_transcoder": (SkipTranscoder, LATENTS, {"k": 3, "d_out": D}),
}


def build(name: str = "bae") -> Autoencoder:
    kind, n_latents, own = KINDS[name]
    model = kind(D, n_latents, **own)
    model.initialise(generator(5, "weights"))
    model.mean.copy_(random(D, seed=1) * 3)
    model.scale.fill_(2.5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(random(len(parameter), seed=len(parameter)) * 0.3)
        if isinstance(model, Transcoder):
            model.W_dec.copy_(random(n_latents, D, seed=6))
    hook = {
        "module": "layers.1",
        "transformers": "hidden_states[2]",
        "transformer_lens": "blocks.1.hook_resid_post",
    }
    model.metadata = {"hook": hook, "model": "tiny", "sae_lens_version": "6.18.0"}
    return model


@pytest.fixture(params=KINDS)
def model(request) -> Autoencoder:
    return build(request.param)


def states(n: int = 500) -> torch.Tensor:
    return random(n, D, seed=4) * 2.5 + random(D, seed=1) * 3


# --- the function ---------------------------------------------------------------------------------


def test_a_binary_autoencoder_is_its_formula():
    model, x = build(), states()
    W_enc, b_enc, W_dec, b_dec, mean = (
        getattr(model, n).double() for n in ("W_enc", "b_enc", "W_dec", "b_dec", "mean")
    )
    z = (x.double() - mean) / 2.5 @ W_enc + b_enc
    h = (z > 0).double()
    assert torch.equal(model.encode(x), h.float())
    assert torch.allclose(model(x).double(), (h @ W_dec + b_dec) * 2.5 + mean, atol=1e-4)
    assert torch.equal(model.encode_bits(x).unpack(), h.float())
    for dtype in (torch.bool, torch.uint8, torch.int64):
        assert torch.equal(model.decode(h.to(dtype)), model.decode(h.float()))
    with pytest.raises(BitlensError, match="NaN or infinite values have no code"):
        model.encode(x / 0)


def test_topk_is_its_formula():
    model, x = build("topk"), states(50)
    z = ((x - model.mean) / 2.5 - model.b_dec) @ model.W_enc + model.b_enc
    codes = torch.zeros_like(z)
    for row, largest in enumerate(z.argsort(1, descending=True)[:, :3].tolist()):
        codes[row, largest] = z[row, largest].clamp_min(0)
    assert torch.allclose(model.encode(x), codes, atol=1e-5)
    assert torch.allclose(
        model(x), (codes @ model.W_dec + model.b_dec) * 2.5 + model.mean, atol=1e-4
    )
    assert torch.allclose(model.W_dec.norm(dim=1), torch.ones(LATENTS))


@pytest.mark.parametrize("k", [0, LATENTS + 1])
def test_topk_refuses_a_senseless_k(k):
    with pytest.raises(BitlensError, match="1 <= k <= 20"):
        TopKAutoencoder(D, LATENTS, k=k)


@pytest.mark.parametrize("leading", [(), (6,), (2, 3), (1, 2, 3)])
def test_any_leading_dimensions(model, leading):
    x = states(6)[: max(1, len(leading) and 6)].reshape(*leading, D)
    flat = model.encode(x.reshape(-1, D))
    assert torch.equal(model.encode(x), flat.reshape(*leading, model.n_latents))
    assert torch.allclose(model.decode(flat.reshape(*leading, model.n_latents), x), model(x))
    assert model(x).shape == x.shape
    assert torch.equal(model.encode_bits(x).unpack(torch.bool), flat != 0)


def test_another_width_is_refused_by_name(model):
    with pytest.raises(BitlensError, match=r"of width 7, not 8; it was trained on layers\.1"):
        model(torch.zeros(2, 8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_hidden_states_of_any_dtype_give_float32(model, dtype):
    x = states(20).to(dtype)
    assert model.encode(x).dtype == model(x).dtype == torch.float32
    assert torch.equal(model.encode(x), model.encode(x.float()))


@pytest.mark.parametrize("name", KINDS)
def test_thresholds_are_float32_under_autocast(name):
    model, x = build(name), states(5000)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.encode(x)
    assert torch.equal(mixed, model.encode(x))


def test_predicting_the_mean_has_fvu_one():
    model, x = build(), states().double()
    with torch.no_grad():
        model.b_enc.fill_(-1e3)
        model.b_dec.zero_()
    model.mean.copy_(x.mean(0))
    error = (x - model(x).detach()).square().sum()
    assert float(error / (x - x.mean(0)).square().sum()) == pytest.approx(1, abs=1e-6)


# --- canonical form -------------------------------------------------------------------------------


def test_canonical_keeps_the_function_and_makes_the_rare_state_one():
    model, x = build(), states(3000)
    with torch.no_grad():
        model.b_enc[0], model.b_enc[1] = 1e3, -1e3
    rates = model.encode(x).double().mean(0)
    canonical = model.canonical(rates)
    codes = canonical.encode(x)
    assert torch.allclose(canonical(x), model(x), atol=1e-4)
    assert canonical.n_latents == LATENTS - 2
    kept = torch.minimum(rates, 1 - rates)[2:]
    assert torch.allclose(codes.double().mean(0), kept)
    assert codes.mean(0).max() <= 0.5
    assert (rates > 0.5).sum() > 3, "nothing was there to flip"
    assert canonical.metadata == model.metadata


def test_canonical_twice_is_canonical_once():
    model, x = build(), states(3000)
    once = model.canonical(model.encode(x).double().mean(0))
    twice = once.canonical(once.encode(x).double().mean(0))
    assert all(
        torch.equal(a, b)
        for a, b in zip(once.state_dict().values(), twice.state_dict().values(), strict=True)
    )


def test_canonical_drops_what_is_constant_but_for_one_row_in_ten_thousand():
    rates = torch.full((LATENTS,), 0.3)
    rates[:4] = torch.tensor([0.99e-4, 1.01e-4, 1 - 0.99e-4, 1 - 1.01e-4])
    assert build().canonical(rates).n_latents == LATENTS - 2


def test_a_collapsed_autoencoder_has_no_canonical_form():
    with pytest.raises(BitlensError, match="collapsed; lower lam"):
        build().canonical(torch.zeros(LATENTS))
    with pytest.raises(BitlensError, match="needs 20 firing rates"):
        build().canonical(torch.full((3,), 0.5))


# --- disk -----------------------------------------------------------------------------------------


def test_saved_and_loaded_is_the_same_to_the_bit(model, tmp_path):
    model.save(tmp_path / "run")
    for kind in (Autoencoder, type(model)):
        again = kind.from_pretrained(tmp_path / "run")
        assert type(again) is type(model)
        assert again.metadata == model.metadata
        assert again.config() == model.config()
        for name, tensor in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], tensor)
    x = states(100)
    assert torch.equal(again(x), model(x))
    assert not again.training


def test_the_files_have_the_documented_layout(model, tmp_path):
    model.save(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"cfg.json", "sae_weights.safetensors"}
    config = json.loads((tmp_path / "cfg.json").read_text())
    n_latents, own = KINDS[model.architecture][1:]
    assert config == {
        "schema": 2,
        "architecture": model.architecture,
        "d_in": D,
        "d_sae": n_latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": isinstance(model, SparseAutoencoder)
        and not isinstance(model, Transcoder),
        "normalize_activations": "none",
        **own,
        "metadata": model.metadata,
    }
    assert set(config["metadata"]["hook"]) == {"module", "transformers", "transformer_lens"}


OWN_SHAPES = {
    "bae": {},
    "topk": {},
    "batch_topk": {"threshold": []},
    "jumprelu": {"threshold": [LATENTS]},
    "gated": {"r_mag": [LATENTS], "b_mag": [LATENTS]},
    "transcoder": {"mean_out": [D], "scale_out": []},
    "skip_transcoder": {"mean_out": [D], "scale_out": [], "W_skip": [D, D]},
}


@pytest.mark.parametrize("name", OWN_SHAPES)
def test_the_weights_have_the_documented_shapes(name, tmp_path):
    build(name).save(tmp_path)
    shapes = {
        name: list(tensor.shape)
        for name, tensor in read_tensors(tmp_path / "sae_weights.safetensors").items()
    }
    assert shapes == {
        "W_enc": [D, LATENTS],
        "b_enc": [LATENTS],
        "W_dec": [LATENTS, D],
        "b_dec": [D],
        "mean": [D],
        "scale": [],
        **OWN_SHAPES[name],
    }


def edited(folder, **changes) -> None:
    path = folder / "cfg.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 3}, "schema 3, but this bitlens reads up to 2; upgrade"),
        ({"schema": None}, "tensors that bitlens does not know here: 'mean', 'scale'"),
        ({"architecture": "nonsense"}, "architecture 'nonsense', not one of: bae, batch_topk"),
        ({"architecture": None}, "lacks the key 'architecture'"),
        ({"d_in": None}, "lacks the key 'd_in'"),
        ({"d_sae": None}, "lacks the key 'd_sae'"),
        ({"k": None}, "lacks the key 'k'"),
        ({"d_sae": 21}, "does not fit"),
    ],
    ids=str,
)
def test_a_checkpoint_that_cannot_be_read_gives_one_error(tmp_path, changes, message):
    build("topk").save(tmp_path)
    edited(tmp_path, **changes)
    with pytest.raises(BitlensError, match=message):
        Autoencoder.from_pretrained(tmp_path)


def test_another_kind_than_the_one_asked_for_is_refused(tmp_path):
    build("topk").save(tmp_path)
    with pytest.raises(BitlensError, match="architecture 'topk', not one of: bae"):
        BinaryAutoencoder.from_pretrained(tmp_path)


def test_missing_and_damaged_files_give_one_error(tmp_path):
    with pytest.raises(BitlensError, match=r"is not an autoencoder: there is no such folder"):
        Autoencoder.from_pretrained(tmp_path / "nowhere")
    build().save(tmp_path)
    weights = tmp_path / "sae_weights.safetensors"
    tensors = read_tensors(weights)
    write_tensors(weights, {name: t.clone() for name, t in tensors.items() if name != "b_enc"})
    with pytest.raises(BitlensError, match=r"lacks 'b_enc', which a bae needs"):
        Autoencoder.from_pretrained(tmp_path)
    weights.write_bytes(weights.read_bytes()[:50])
    with pytest.raises(BitlensError, match="is damaged"):
        Autoencoder.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(BitlensError, match="is missing"):
        Autoencoder.from_pretrained(tmp_path)
    (tmp_path / "cfg.json").write_text("{")
    with pytest.raises(BitlensError, match=r"cfg\.json is damaged"):
        Autoencoder.from_pretrained(tmp_path)


@pytest.mark.parametrize("widths", [(0, 4), (4, 0)])
def test_an_empty_autoencoder_is_refused(widths):
    with pytest.raises(BitlensError, match="an input and a latent at least"):
        BinaryAutoencoder(*widths)


# --- the step and its surrogate gradients ---------------------------------------------------------


def slope(surrogate: Surrogate, width, z: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    z = z.clone().requires_grad_()
    h = binarize(z, width, surrogate)
    assert torch.equal(h, (z > 0).float())
    h.backward(g)
    assert z.grad is not None
    return z.grad


@pytest.fixture
def at() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pre-activations, the gradient in the bits, and a width for each latent."""
    return random(50, 4), random(50, 4, seed=1), torch.tensor([0.1, 0.5, 1.0, 3.0])


def test_clipped_passes_the_gradient_inside_its_window(at):
    z, g, width = at
    dz = slope("clipped", width, z, g)
    inside = z.abs() < width
    assert 0 < inside.float().mean() < 1
    assert torch.equal(dz, torch.where(inside, g, 0.0))


def test_sigmoid_is_the_derivative_of_a_sigmoid(at):
    z, g, width = at
    exact = z.clone().requires_grad_()
    torch.sigmoid(exact / width).backward(g)
    assert torch.allclose(slope("sigmoid", width, z, g), exact.grad, atol=1e-6)


def test_ste_passes_everything(at):
    z, g, _ = at
    assert torch.equal(slope("ste", 1.0, z, g), g)


def test_paper_is_what_the_code_of_the_paper_computes(at):
    z, g, _ = at
    assert torch.equal(slope("paper", 1.0, z, g), g * (1 - g))
