"""Autoencoders of other libraries, against these libraries and against their formulas."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bitlens.autoencoders import Autoencoder
from bitlens.autoencoders.formats.registry import FORMATS, folder_of
from bitlens.errors import BitlensError
from exchanged_imports import MAKERS, exchange, hidden_states

D, N = 6, 10


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    """Of a JumpReLU, by SAELens' names."""
    generator = torch.Generator().manual_seed(0)
    sizes = {"W_enc": (D, N), "b_enc": (N,), "W_dec": (N, D), "b_dec": (D,), "threshold": (N,)}
    drawn = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
    return {**drawn, "threshold": drawn["threshold"].abs() / 4}


@pytest.fixture
def x() -> Tensor:
    return torch.randn(50, D, generator=torch.Generator().manual_seed(1))


def sae_lens(folder: Path, tensors: dict[str, Tensor], **changed: Any) -> Path:
    """A folder of SAELens 6; a change of None leaves a key out."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"model_name": "bundled", "hook_name": "blocks.2.hook_resid_post"}
    about |= {"context_size": 256, "prepend_bos": True, "sae_lens_version": "6.54.12"}
    config = {"architecture": "jumprelu", "d_in": D, "d_sae": N, "dtype": "float32"}
    config |= {"apply_b_dec_to_input": True, "normalize_activations": "none", "metadata": about}
    config |= changed
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder


def jump(z: Tensor, threshold: Tensor) -> Tensor:
    return z.relu() * (z > threshold)


# --- what is computed -----------------------------------------------------------------------------


@pytest.mark.parametrize("applied", [True, False])
def test_whether_b_dec_is_subtracted_is_the_files(tmp_path, tensors, x, applied):
    t = tensors
    ours = Autoencoder.from_pretrained(sae_lens(tmp_path, t, apply_b_dec_to_input=applied))
    z = (x - t["b_dec"] * applied) @ t["W_enc"] + t["b_enc"]
    codes = jump(z, t["threshold"])
    assert torch.equal(ours.encode(x), codes)
    torch.testing.assert_close(ours(x).detach(), codes @ t["W_dec"] + t["b_dec"])
    ours.save(tmp_path / "again")
    again = Autoencoder.from_pretrained(tmp_path / "again")
    assert again.subtracts_b_dec is applied
    assert torch.equal(again.encode(x), ours.encode(x))
    assert again.metadata == ours.metadata


def test_a_threshold_below_zero_rectifies(tmp_path, tensors, x):
    t = {**tensors, "threshold": tensors["threshold"] - 1}
    assert (t["threshold"] < 0).any()
    ours = Autoencoder.from_pretrained(sae_lens(tmp_path, t))
    z = (x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    assert torch.equal(ours.encode(x), jump(z, t["threshold"]))


def test_hidden_states_are_normalised_by_the_scale_in_the_file(tmp_path, tensors, x):
    how = {"normalize_activations": "expected_average_only_in", "norm_scaling_factor": 0.25}
    t, ours = tensors, Autoencoder.from_pretrained(sae_lens(tmp_path, tensors, **how))
    codes = jump((x * 0.25 - t["b_dec"]) @ t["W_enc"] + t["b_enc"], t["threshold"])
    torch.testing.assert_close(ours.encode(x), codes)
    torch.testing.assert_close(ours(x).detach(), (codes @ t["W_dec"] + t["b_dec"]) / 0.25)
    assert float(ours.scale) == 4
    assert not ours.mean.any()


def test_codes_rescaled_by_decoder_norms_are_folded(tmp_path, tensors, x):
    t = {name: tensor for name, tensor in tensors.items() if name != "threshold"}
    how = {"architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": True}
    ours = Autoencoder.from_pretrained(sae_lens(tmp_path, t, **how))
    norms = t["W_dec"].norm(dim=1)
    z = ((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]) * norms
    top = z.topk(3)
    codes = torch.zeros_like(z).scatter(1, top.indices, top.values.relu())
    torch.testing.assert_close(ours.encode(x), codes)
    expected = (codes / norms) @ t["W_dec"] + t["b_dec"]
    torch.testing.assert_close(ours(x).detach(), expected)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"activation_fn_str": "relu"}, "relu"),
        ({"activation_fn": "tanh-relu"}, "tanh_relu"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}}, "topk"),
    ],
    ids=["relu", "tanh-relu", "topk"],
)
def test_flat_settings_of_before_version_6(tmp_path, tensors, x, changed, expected):
    t = {name: tensor for name, tensor in tensors.items() if name != "threshold"}
    flat = {"hook_point": "blocks.3.hook_resid_pre", "model_name": "gpt2-small", "context_size": 9}
    flat |= {"lr": 3e-4, "l1_coefficient": 1.0, "metadata": None, "apply_b_dec_to_input": None}
    folder = sae_lens(tmp_path, t, architecture="standard", **flat, **changed)
    ours = Autoencoder.from_pretrained(folder)
    z = (x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    codes = {
        "relu": z.relu(),
        "tanh_relu": z.relu().tanh(),
        "topk": jump(z, z.topk(4).values[:, 3:]),
    }[expected]
    assert ours.architecture == expected
    torch.testing.assert_close(ours.encode(x), codes)
    assert ours.metadata["hook"]["module"] == "layers.2"
    assert ours.metadata["hook"]["transformer_lens"] == "blocks.2.hook_resid_post"
    assert ours.metadata["context_length"] == 9


def test_a_finetuned_scale_is_of_the_reconstruction_alone(tmp_path, tensors, x):
    scale = torch.linspace(0.5, 2, N)
    t = {**tensors, "scaling_factor": scale}
    ours = Autoencoder.from_pretrained(
        sae_lens(
            tmp_path,
            t,
            metadata=None,
            hook_name="blocks.2.hook_resid_post",
            finetuning_scaling_factor=True,
        )
    )
    codes = jump((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"], t["threshold"])
    assert torch.equal(ours.encode(x), codes)
    torch.testing.assert_close(ours(x).detach(), (codes * scale) @ t["W_dec"] + t["b_dec"])


def test_gemma_scope_by_its_formula(tmp_path, tensors, x):
    folder = tmp_path / "gemma-scope-2b-pt-res" / "layer_12" / "width_16k" / "average_l0_82"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name.lower(): t.numpy() for name, t in tensors.items()})
    ours, t = Autoencoder.from_pretrained(folder), tensors
    codes = jump(x @ t["W_enc"] + t["b_enc"], t["threshold"])
    assert torch.equal(ours.encode(x), codes)
    torch.testing.assert_close(ours(x).detach(), codes @ t["W_dec"] + t["b_dec"])
    assert ours.metadata["model"] == "google/gemma-2-2b"
    assert ours.metadata["hook"]["module"] == "layers.12"


def test_attention_heads_side_by_side_are_the_input_of_their_last_layer(tmp_path, tensors):
    about = {"hook_name": "blocks.1.attn.hook_z", "sae_lens_version": "6.0.0"}
    folder = sae_lens(tmp_path, tensors, reshape_activations="hook_z", metadata=about)
    hook = Autoencoder.from_pretrained(folder).metadata["hook"]
    assert hook["module"] == "layers.1.self_attn.o_proj:input"


@pytest.mark.parametrize("architecture", ["relu_skip_transcoder", "jumprelu_skip_transcoder"])
def test_an_imported_transcoder_is_saved_as_any_other(tmp_path, tensors, x, architecture):
    t = {**tensors, "W_skip": torch.randn(D, D)}
    jumps = architecture.startswith("jump")
    if not jumps:
        del t["threshold"]
    name = architecture if jumps else "skip_transcoder"
    settings = {"architecture": name, "d_out": D, "apply_b_dec_to_input": False}
    ours = Autoencoder.from_pretrained(sae_lens(tmp_path / "theirs", t, **settings))
    z = x @ t["W_enc"] + t["b_enc"]
    codes = jump(z, t["threshold"]) if jumps else z.relu()
    expected = codes @ t["W_dec"] + t["b_dec"] + x @ t["W_skip"].T
    torch.testing.assert_close(ours(x).detach(), expected)
    ours.save(tmp_path / "ours")
    again = Autoencoder.from_pretrained(tmp_path / "ours")
    assert again.architecture == architecture
    assert torch.equal(again(x), ours(x))


# --- what is refused ------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"architecture": "temporal"}, "architecture 'temporal', not one of: standard"),
    "per-row normalisation": (
        {"normalize_activations": "layer_norm"},
        "normalize_activations 'layer_norm', which bitlens does not honour",
    ),
    "whitening": (
        {"normalize_activations": "covariance_whitening"},
        "'covariance_whitening', which bitlens does not honour",
    ),
    "an unknown norm": (
        {"normalize_activations": "expected_average_only_in"},
        "add a 'norm_scaling_factor'",
    ),
    "an unknown key": ({"rotates_latents": True}, "'rotates_latents', which this bitlens does not"),
    "width": ({"d_in": 7}, "says d_in 7, but its tensors have 6"),
    "latents": ({"d_sae": 11}, "says n_latents 11, but its tensors have 10"),
    "no width": ({"d_in": None}, "lacks the key 'd_in'"),
    "one head": ({"hook_head_index": 3, "metadata": None}, "hook_head_index 3, which bitlens"),
    "activation": (
        {"activation_fn": "gelu", "metadata": None},
        "activation_fn 'gelu', which bitlens does not honour, only 'relu', 'tanh-relu', 'topk'",
    ),
    "a gated one with TopK": (
        {"architecture": "gated", "activation_fn": "topk", "metadata": None},
        "architecture 'gated with topk', not one of",
    ),
    "a scale that is none": (
        {"normalize_activations": "expected_average_only_in", "norm_scaling_factor": 10**400},
        "add a 'norm_scaling_factor'",
    ),
    "a later version": (
        {"metadata": {"sae_lens_version": "7.0.0"}},
        "written by SAELens 7, and this bitlens reads those up to 6",
    ),
    "a changed model": (
        {"metadata": {"model_from_pretrained_kwargs": {"center_writing_weights": True}}},
        "center_writing_weights",
    ),
    "no k": ({"architecture": "topk"}, "tensors that bitlens does not know here: 'threshold'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(tmp_path, tensors, case):
    changed, message = REFUSED[case]
    folder = sae_lens(tmp_path, tensors, **changed)
    with pytest.raises(BitlensError) as caught:
        Autoencoder.from_pretrained(folder)
    said = str(caught.value)
    assert message in said
    assert said.endswith(".")
    assert "\n" not in said


def test_a_missing_tensor_is_named(tmp_path, tensors):
    folder = sae_lens(tmp_path, {k: v for k, v in tensors.items() if k != "b_enc"})
    with pytest.raises(BitlensError, match=r"sae_weights\.safetensors lacks the tensor 'b_enc'"):
        Autoencoder.from_pretrained(folder)


def test_tensors_that_do_not_fit_one_another_are_refused(tmp_path, tensors):
    folder = sae_lens(tmp_path, {**tensors, "b_enc": torch.zeros(N + 1)})
    with pytest.raises(BitlensError, match=r"'b_enc' has the shape \[11\], not \[10\]"):
        Autoencoder.from_pretrained(folder)


class Bomb:
    """What runs when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_pickle_is_run(tmp_path, tensors):
    folder, ran = tmp_path / "dictionary", tmp_path / "ran"
    folder.mkdir()
    config = {"trainer": {"dict_class": "AutoEncoderTopK", "k": 2}}
    (folder / "config.json").write_text(json.dumps(config))
    torch.save({"encoder.weight": tensors["W_enc"], "b_dec": Bomb(ran)}, folder / "ae.pt")
    with pytest.raises(BitlensError, match=r"ae\.pt does not hold tensors alone.*nothing in it"):
        Autoencoder.from_pretrained(folder)
    torch.save([tensors["W_enc"]], folder / "ae.pt")
    with pytest.raises(BitlensError, match="does not hold tensors by their names"):
        Autoencoder.from_pretrained(folder)
    (folder / "ae.pt").write_bytes(b"no archive")
    with pytest.raises(BitlensError, match="does not hold tensors alone"):
        Autoencoder.from_pretrained(folder)
    np.savez(tmp_path / "params.npz", w_enc=np.array([Bomb(ran)], dtype=object))
    with pytest.raises(BitlensError, match="does not hold arrays of numbers alone"):
        Autoencoder.from_pretrained(tmp_path)
    assert not ran.exists()


def of_torch(folder: Path, tensors: dict[str, Tensor], **changed: Any) -> Path:
    """A file of Goodfire."""
    folder.mkdir(exist_ok=True)
    named = {"encoder_linear.weight": tensors["W_enc"].T, "encoder_linear.bias": tensors["b_enc"]}
    named |= {"decoder_linear.weight": tensors["W_dec"].T, "decoder_linear.bias": tensors["b_dec"]}
    torch.save(named | changed, folder / "model-SAE-l3.pt")
    return folder


NO_NUMBERS = {
    "NaN": lambda t: t * torch.nan,
    "infinity": lambda t: t + torch.inf,
    "float16 that overflowed": lambda t: (t + 1e6).half(),
    "integers without their scale": lambda t: t.to(torch.int8),
    "complex": lambda t: t.to(torch.complex64),
    "sparse": lambda t: t.to_sparse(),
    "nowhere": lambda t: t.to("meta"),
    "of another size than its file": lambda t: torch.zeros(1).expand(10**8, 10**8),
}


@pytest.mark.parametrize("case", NO_NUMBERS)
def test_weights_that_are_no_plain_finite_numbers_are_refused(tmp_path, tensors, case):
    assert Autoencoder.from_pretrained(of_torch(tmp_path, tensors)).architecture == "relu"
    changed = {"encoder_linear.weight": NO_NUMBERS[case](tensors["W_enc"].T)}
    with pytest.raises(BitlensError, match=r"'encoder_linear\.weight'") as caught:
        Autoencoder.from_pretrained(of_torch(tmp_path, tensors, **changed))
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_other_precisions_are_read_as_float32(tmp_path, tensors, dtype):
    given = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    ours = Autoencoder.from_pretrained(sae_lens(tmp_path, given))
    assert ours.W_enc.dtype == torch.float32
    assert torch.equal(ours.W_enc, given["W_enc"].float())


def damaged_arrays(kind: str, file: Path) -> None:
    """An .npz file of one array that cannot be read."""
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (10000000, 10000000)}"
    header = ("{'descr': ((((" if kind == "header" else header).ljust(117) + "\n"
    start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
    compression = zipfile.ZIP_DEFLATED if kind == "deflated" else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("w_enc.npy", start + header.encode() + bytes(240))
    content = bytearray(file.read_bytes())
    if kind == "deflated":
        content[45:60] = bytes(15)
    if kind == "encrypted":
        content[6] |= 1
        content[content.find(b"PK\x01\x02") + 8] |= 1
    file.write_bytes(content[:100] if kind == "truncated" else content)


@pytest.mark.parametrize("kind", ["huge", "header", "deflated", "encrypted", "truncated"])
def test_damaged_arrays_are_a_sentence(tmp_path, kind):
    damaged_arrays(kind, tmp_path / "params.npz")
    # a damaged header, or a machine too small: bitlens cannot tell
    huge = r"Memory ran out .* 364 TiB of memory was asked for; .* restore the file"
    said = huge if kind == "huge" else "does not hold arrays of numbers alone"
    with pytest.raises(BitlensError, match=said):
        Autoencoder.from_pretrained(tmp_path)


def dictionary(
    folder: Path, tensors: dict[str, Tensor], k: Tensor, trainer: dict[str, Any]
) -> Path:
    """A TopK of dictionary_learning, which keeps k among the tensors, too."""
    folder.mkdir(exist_ok=True)
    config = {"trainer": {"dict_class": "AutoEncoderTopK", **trainer}}
    (folder / "config.json").write_text(json.dumps(config))
    named = {"encoder.weight": tensors["W_enc"].T, "encoder.bias": tensors["b_enc"]}
    named |= {"decoder.weight": tensors["W_dec"].T, "b_dec": tensors["b_dec"], "k": k}
    torch.save(named, folder / "ae.pt")
    return folder


def test_two_values_of_k_are_refused(tmp_path, tensors):
    two, odd = torch.tensor(2), torch.ones(3)
    for trainer in ({"k": 2}, {}):
        ours = Autoencoder.from_pretrained(dictionary(tmp_path, tensors, two, trainer))
        assert ours.settings["k"] == 2
    for k, trainer in ((two, {"k": 3}), (odd, {"k": 2}), (odd, {}), (torch.tensor(torch.nan), {})):
        with pytest.raises(BitlensError, match=r"says k|for 'k'"):
            Autoencoder.from_pretrained(dictionary(tmp_path, tensors, k, trainer))


@pytest.mark.parametrize(
    "changed",
    [{"d_in": 10**9, "d_sae": 10**9}, {"d_in": 10**30}, {"k": "3"}, {"k": 3.0}, {"k": None}],
    ids=str,
)
def test_settings_of_our_own_that_do_not_fit_are_a_sentence(tmp_path, tensors, changed):
    t = {name: tensor for name, tensor in tensors.items() if name != "threshold"}
    folder = sae_lens(tmp_path / "theirs", t, architecture="topk", k=3)
    Autoencoder.from_pretrained(folder).save(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(config | changed))
    with pytest.raises(BitlensError, match=r"does not fit|is damaged"):
        Autoencoder.from_pretrained(tmp_path)


def test_a_latent_without_a_decoder_row_is_never_on(tmp_path, tensors, x):
    t = {name: tensor for name, tensor in tensors.items() if name != "threshold"}
    t["W_dec"][:8] = 0
    how = {"architecture": "topk", "k": 6, "rescale_acts_by_decoder_norm": True}
    codes = Autoencoder.from_pretrained(sae_lens(tmp_path, t, **how)).encode(x)
    assert not codes[:, :8].any()
    assert codes[:, 8:].any()


def test_a_path_of_gemma_scope_is_read_from_its_repository_on(tmp_path, tensors):
    below = "layer_3/embedding/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82"
    folder = tmp_path / below
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name.lower(): t.numpy() for name, t in tensors.items()})
    assert Autoencoder.from_pretrained(folder).metadata["hook"]["module"] == "layers.12"
    other = tmp_path / "gemma-scope-2b-pt-res" / "embedding"
    other.mkdir(parents=True)
    (folder / "params.npz").rename(other / "params.npz")
    with pytest.raises(BitlensError, match="scaled embeddings"):
        Autoencoder.from_pretrained(other)


LLAMA_SCOPE: dict[str, Any] = {"d_model": D, "d_sae": N, "act_fn": "jumprelu"}
LLAMA_SCOPE |= {"norm_activation": "dataset-wise", "hook_point_in": "blocks.3.hook_resid_post"}
LLAMA_SCOPE |= {"jump_relu_threshold": 0.1, "dataset_average_activation_norm": {"in": 3, "out": 3}}


@pytest.mark.parametrize(
    "changed",
    [
        {"d_model": 0},
        {"d_model": 10**400},
        {"d_sae": "\n"},
        {"jump_relu_threshold": torch.nan},
        {"jump_relu_threshold": 10**400},
        {"hook_point_in": ["a"]},
        {"dataset_average_activation_norm": {"in": 10**400, "out": 3}},
        {"dataset_average_activation_norm": {"in": -3, "out": 3}},
    ],
    ids=lambda changed: str(changed)[:40],
)
def test_settings_that_are_no_numbers_are_a_sentence(tmp_path, tensors, changed):
    named = {"encoder.weight": tensors["W_enc"].T, "encoder.bias": tensors["b_enc"]}
    named |= {"decoder.weight": tensors["W_dec"].T, "decoder.bias": tensors["b_dec"]}
    (tmp_path / "checkpoints").mkdir()
    contiguous = {name: tensor.contiguous() for name, tensor in named.items()}
    save_file(contiguous, tmp_path / "checkpoints" / "final.safetensors")
    (tmp_path / "hyperparams.json").write_text(json.dumps(LLAMA_SCOPE))
    assert Autoencoder.from_pretrained(tmp_path).architecture == "jumprelu"
    (tmp_path / "hyperparams.json").write_text(json.dumps(LLAMA_SCOPE | changed))
    with pytest.raises(BitlensError) as caught:
        Autoencoder.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


SPARSIFY: dict[str, Any] = {"d_in": D, "num_latents": N, "k": 2, "activation": "topk"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"activation": "groupmax"}, "activation 'groupmax', which bitlens does not honour"),
        ({"signed": True}, "signed True, which bitlens does not honour"),
        ({"num_latents": N + 1}, "says n_latents 11"),
        ({"skip_connection": True}, "lacks the tensor 'W_skip'"),
        ({"butterfly": 3}, "'butterfly'"),
    ],
    ids=str,
)
def test_sparsify_is_read_or_refused(tmp_path, tensors, x, changed, message):
    t, folder = tensors, tmp_path / "layers.2"
    folder.mkdir()
    theirs = {"encoder.weight": t["W_enc"].T.contiguous(), "encoder.bias": t["b_enc"]}
    theirs |= {"W_dec": t["W_dec"], "b_dec": t["b_dec"]}
    save_file(theirs, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps(SPARSIFY))
    ours = Autoencoder.from_pretrained(folder)
    z = (x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    torch.testing.assert_close(ours.encode(x), jump(z, z.topk(3).values[:, 2:]))
    (folder / "cfg.json").write_text(json.dumps(SPARSIFY | changed))
    with pytest.raises(BitlensError, match=message):
        Autoencoder.from_pretrained(folder)


def test_cross_layer_transcoders_and_strange_folders_are_refused(tmp_path, tensors):
    with pytest.raises(BitlensError, match=r"no cfg\.json, and no files of sae-lens, sparsify"):
        Autoencoder.from_pretrained(tmp_path)
    theirs = {name.lower(): t for name, t in tensors.items()}
    save_file({**theirs, "w_dec": torch.zeros(N, 3, D)}, tmp_path / "params.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "jump_relu"}))
    with pytest.raises(BitlensError, match="cross-layer transcoder"):
        Autoencoder.from_pretrained(tmp_path)


def test_a_folder_that_is_here_is_never_asked_for_at_a_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("bitlens.hub.fetch", lambda *a, **k: pytest.fail("a hub was asked"))
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    for source in ("runs/bae", tmp_path / "none", "./none", "none"):
        assert folder_of(source) == Path(source)


def test_a_repository_is_fetched_with_its_revision_and_folder(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("bitlens.hub.fetch", lambda *a, **k: asked.append((a, k)) or tmp_path)
    (tmp_path / "cfg.json").write_text("{}")
    folder_of("owner/name@v2/layer_1/width_16k")
    folder_of(Path("owner/name"), revision="main", subfolder="layer_1")
    places = [(a[0], k["revision"], k["subfolder"]) for a, k in asked]
    assert places == [("owner/name", "v2", "layer_1/width_16k"), ("owner/name", "main", "layer_1")]
    wanted = set(asked[0][1]["patterns"])
    assert {file for kind in FORMATS for file in kind.files if "*" not in file} <= wanted
    assert "name.pt" in wanted


FETCH = """
import sys

from bitlens.autoencoders import Autoencoder
from bitlens.errors import BitlensError

for source in sys.argv[1:]:
    try:
        print(Autoencoder.from_pretrained(source))
    except BitlensError as error:
        print(error)
"""


@pytest.mark.slow
def test_other_libraries_are_read_from_a_hub(tmp_path, tensors):
    server = pytest.importorskip("hub_server")
    file = tmp_path / "params.npz"
    np.savez(file, **{name.lower(): tensor.numpy() for name, tensor in tensors.items()})
    name = "google/gemma-scope-2b-pt-res"
    with server.Hub() as hub:
        hub.add(name, {"layer_12/width_16k/params.npz": file.read_bytes(), "README.md": b"-"})
        asked = (f"{name}/layer_12/width_16k", f"{name}@main/layer_12/width_16k", name)
        said = server.run(hub, tmp_path / "home", "-c", FETCH, *asked).out.splitlines()
    one = "JumpReLUAutoencoder(d_in=6, n_latents=10, hook='layers.12')"
    assert said[:2] == [one, one]
    assert f"no autoencoder in the top folder of '{name}'; name the folder of one" in said[2]


# --- against the libraries ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    return hidden_states(tmp_path_factory.mktemp("rows"))


@pytest.mark.slow
@pytest.mark.parametrize(("tool", "what"), MAKERS, ids=lambda part: part.replace(" ", "_"))
def test_codes_and_reconstructions_are_the_librarys_own(tmp_path, rows, tool, what):
    pytest.importorskip(
        {"sparsify": "sparsify", "dictionary_learning": "dictionary_learning"}.get(tool, "sae_lens")
    )
    row, ours, theirs = exchange(tool, what, tmp_path, rows)
    on = theirs.codes != 0
    assert 0 < on.float().mean() < 0.6
    assert torch.equal(ours.encode(rows) != 0, on)
    assert row.codes <= 1e-6 * float(theirs.codes.abs().max())
    assert row.reconstruction <= 1e-6 * float(theirs.reconstruction.abs().max())
    assert ours.metadata["hook"]["module"]
    assert ("target_hook" in ours.metadata) == ours.transcodes
