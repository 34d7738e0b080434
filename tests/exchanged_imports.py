"""Autoencoders of other libraries with random weights, saved by the libraries' own code, and what
they and bitlens make of the same hidden states."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from bitlens.autoencoders import Autoencoder
from bitlens.hidden import ActivationStore, LanguageModel
from bitlens.hidden.config import TextConfig
from bitlens.hidden.harvest import harvest
from exchanged import BUNDLED, IN, Row
from exchanged import hidden_states as exchanged_states

LATENTS, K = 384, 12


class Theirs(NamedTuple):
    """Codes and reconstruction of hidden states by the library itself."""

    codes: Tensor
    reconstruction: Tensor


Maker = Callable[[Path, Tensor], Theirs]


def scaled(module: Any, x: Tensor) -> None:
    """Random parameters, at the scale at which a few latents are on in rows like x."""
    generator = torch.Generator().manual_seed(0)
    width = float(x.norm(dim=1).mean())
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.dim() == 2:
            drawn = torch.randn(tensor.shape, generator=generator)
            tensor.data = drawn / drawn.shape[-1] ** 0.5
        elif "threshold" in name:
            tensor.data = torch.rand(tensor.shape, generator=generator) * 0.05 * width
        elif name == "r_mag":
            tensor.data = torch.randn(tensor.shape, generator=generator) * 0.1
        elif name != "k" and tensor.is_floating_point():
            tensor.data = torch.randn(tensor.shape, generator=generator) * 0.02 * width


# --- sae-lens -------------------------------------------------------------------------------------


def sae_lens(architecture: str, **changed: Any) -> Maker:
    """An SAE of SAELens, saved by `save_model`."""

    def make(folder: Path, x: Tensor) -> Theirs:
        from sae_lens import SAE
        from sae_lens.registry import get_sae_class
        from sae_lens.saes.sae import SAEMetadata

        kind, config_of = get_sae_class(architecture)
        assert issubclass(kind, SAE)
        about = SAEMetadata(
            model_name="bundled", hook_name="blocks.2.hook_resid_post", context_size=256
        )
        settings: dict[str, Any] = {"d_in": x.shape[1], "d_sae": LATENTS, "metadata": about}
        if "transcoder" in architecture:
            settings |= {"d_out": 24, "apply_b_dec_to_input": False}
            about.hook_name_out = "blocks.2.hook_mlp_out"
        sae = kind(config_of(**settings | changed))
        scaled(sae, x)
        sae.save_model(folder)
        return Theirs(sae.encode(x).detach(), sae(x).detach())

    return make


# --- sparsify -------------------------------------------------------------------------------------


# read when sparsify is imported: where triton is installed and no GPU is there, it finds no driver
os.environ["SPARSIFY_DISABLE_TRITON"] = "1"


def sparsify(**settings: Any) -> Maker:
    """A SparseCoder of sparsify, saved by `save_to_disk`."""

    def make(folder: Path, x: Tensor) -> Theirs:
        with contextlib.redirect_stdout(io.StringIO()):
            from sparsify import SparseCoder, SparseCoderConfig

        coder = SparseCoder(x.shape[1], SparseCoderConfig(num_latents=LATENTS, k=K, **settings))
        scaled(coder, x)
        coder.save_to_disk(folder)
        found = coder(x)
        codes = torch.zeros(len(x), LATENTS)
        codes.scatter_(1, found.latent_indices, found.latent_acts.detach())
        return Theirs(codes, found.sae_out.detach())

    return make


# --- dictionary_learning --------------------------------------------------------------------------


def dictionary_learning(dict_class: str, **settings: Any) -> Maker:
    """A dictionary, saved as its training does, and read by `load_dictionary`."""

    def make(folder: Path, x: Tensor) -> Theirs:
        from dictionary_learning import dictionary, utils
        from dictionary_learning.trainers import batch_top_k, matryoshka_batch_top_k, top_k

        homes = (dictionary, top_k, batch_top_k, matryoshka_batch_top_k)
        kind = next(getattr(home, dict_class) for home in homes if hasattr(home, dict_class))
        ae = kind(x.shape[1], LATENTS, **settings)
        scaled(ae, x)
        folder.mkdir(parents=True)
        torch.save(ae.state_dict(), folder / "ae.pt")
        about = {"dict_class": dict_class, "activation_dim": x.shape[1], "dict_size": LATENTS}
        about |= {"layer": 2, "lm_name": "bundled", **settings, "submodule_name": None}
        config = {"trainer": about, "buffer": {"ctx_len": 256}}
        (folder / "config.json").write_text(json.dumps(config))
        with contextlib.redirect_stdout(io.StringIO()):
            again, _ = utils.load_dictionary(str(folder), "cpu")
        codes = again.encode(x).detach()
        return Theirs(codes, again.decode(codes).detach())

    return make


# --- formats without a package: through SAELens' own readers of them -----------------------------


@contextlib.contextmanager
def hub_is_here(root: Path) -> Iterator[None]:
    """SAELens' readers find the files of a repository below `root`."""
    from sae_lens.loading import pretrained_sae_loaders as loaders

    def download(repo_id: str, filename: str, subfolder: str = "", **_: Any) -> str:
        return str(root / repo_id / subfolder / filename)

    def shapes(repo_id: str, filename: str) -> dict[str, list[int]]:
        from safetensors import safe_open

        with safe_open(root / repo_id / filename, framework="pt") as file:
            return {name: list(file.get_tensor(name).shape) for name in file.keys()}  # noqa: SIM118

    before = loaders.hf_hub_download, loaders.get_safetensors_tensor_shapes
    loaders.hf_hub_download, loaders.get_safetensors_tensor_shapes = download, shapes
    try:
        yield
    finally:
        loaders.hf_hub_download, loaders.get_safetensors_tensor_shapes = before


def by_sae_lens(
    root: Path,
    loader: str,
    repository: str,
    place: str,
    x: Tensor,
    factor: float = 1.0,
    **more: Any,
) -> Theirs:
    """What SAELens makes of a published format. factor: that it multiplies hidden states with."""
    from sae_lens.loading import pretrained_sae_loaders as loaders
    from sae_lens.registry import get_sae_class

    with hub_is_here(root):
        read = loaders.NAMED_PRETRAINED_SAE_LOADERS[loader]
        config, state, _ = read(repository, place, "cpu", False, {"dtype": "float32", **more})
    config = loaders.handle_config_defaulting(config)
    kind, config_of = get_sae_class(config["architecture"])
    sae = kind(config_of.from_dict(config))
    sae.load_state_dict(state)
    if factor != 1:
        sae.fold_activation_norm_scaling_factor(factor)
    return Theirs(sae.encode(x).detach(), sae(x).detach())


def drawn(x: Tensor, d_out: int | None = None) -> dict[str, Tensor]:
    """Random tensors of a JumpReLU, by bitlens' names."""
    width = x.shape[1]
    module = torch.nn.Module()
    sizes = {"W_enc": (width, LATENTS), "b_enc": (LATENTS,), "W_dec": (LATENTS, d_out or width)}
    sizes |= {"b_dec": (d_out or width,), "threshold": (LATENTS,)}
    for name, size in sizes.items():
        module.register_parameter(name, torch.nn.Parameter(torch.zeros(size)))
    scaled(module, x)
    return {name: tensor.detach() for name, tensor in module.named_parameters()}


def gemma_scope(where: str) -> Maker:
    def make(folder: Path, x: Tensor) -> Theirs:
        tensors = {name.lower(): tensor.numpy() for name, tensor in drawn(x).items()}
        folder.mkdir(parents=True)
        np.savez(folder / "params.npz", **tensors)
        loader = "gemma_2_transcoder" if where == "transcoders" else "gemma_2"
        place, root = "layer_2/width_16k/average_l0_20", folder.parents[3]
        more = {"d_in": x.shape[1], "d_sae": LATENTS}
        more |= {"d_out": x.shape[1]} if where == "transcoders" else {}
        name = f"gemma-scope-2b-pt-{where}"
        return by_sae_lens(root, loader, name, place, x, **more)

    return make


def gemma_scope_2(where: str, affine: bool = False) -> Maker:
    def make(folder: Path, x: Tensor) -> Theirs:
        tensors = {name.lower(): tensor for name, tensor in drawn(x).items()}
        if affine:
            tensors["affine_skip_connection"] = torch.randn(x.shape[1], x.shape[1]) / 16
        folder.mkdir(parents=True)
        save_file(tensors, folder / "params.safetensors")
        layer = "model.layers.2"
        config = {"architecture": "jump_relu", "model_name": "gemma-v3-270m-pt"}
        config |= {"width": LATENTS, "l0": 20, "type": where, "affine_connection": affine}
        config |= {"hf_hook_point_in": f"{layer}.output", "hf_hook_point_out": f"{layer}.output"}
        if where == "transcoder":
            config |= {
                "hf_hook_point_in": f"{layer}.pre_feedforward_layernorm.output",
                "hf_hook_point_out": f"{layer}.post_feedforward_layernorm.output",
            }
        (folder / "config.json").write_text(json.dumps(config))
        root, repository = folder.parents[2], folder.parents[1].name
        place = f"{folder.parent.name}/{folder.name}"
        return by_sae_lens(root, "gemma_3", repository, place, x)

    return make


def llama_scope(distilled: bool = False) -> Maker:
    def make(folder: Path, x: Tensor) -> Theirs:
        own = drawn(x)
        width, norm = x.shape[1], float(x.norm(dim=1).mean())
        factor = width**0.5 / norm
        own = {name: t if t.dim() == 2 else t * factor for name, t in own.items()}
        own["W_dec"] /= own["W_dec"].norm(dim=1, keepdim=True)
        tensors = {
            "encoder.weight": own["W_enc"].T.contiguous(),
            "encoder.bias": own["b_enc"],
            "decoder.weight": own["W_dec"].T.contiguous(),
            "decoder.bias": own["b_dec"],
        }
        hook = "blocks.2.hook_resid_post"
        config = {"d_model": width, "act_fn": "jumprelu", "norm_activation": "dataset-wise"}
        config |= {"hook_point_in": hook, "hook_point_out": hook, "use_glu_encoder": False}
        config |= {"sparsity_include_decoder_norm": True, "expansion_factor": LATENTS / width}
        folder.mkdir(parents=True)
        if distilled:
            tensors["log_jumprelu_threshold"] = own["threshold"].log()
            config["norm_scaling_factor"] = factor
            save_file(tensors, folder / "sae_weights.safetensors")
            (folder / "config.json").write_text(json.dumps(config))
            loader, more = "llama_scope_r1_distill", {"d_sae": LATENTS}
        else:
            config |= {"d_sae": LATENTS, "jump_relu_threshold": 0.5 * norm / width**0.5}
            config["dataset_average_activation_norm"] = {"in": norm, "out": norm}
            (folder / "checkpoints").mkdir()
            save_file(tensors, folder / "checkpoints" / "final.safetensors")
            (folder / "hyperparams.json").write_text(json.dumps(config))
            loader, more = "llama_scope", {}
        root = folder.parent.parent
        name = folder.parent.name
        return by_sae_lens(root, loader, name, folder.name, x, factor, **more)

    return make


def goodfire(folder: Path, x: Tensor) -> Theirs:
    own = drawn(x)
    tensors = {
        "encoder_linear.weight": own["W_enc"].T.contiguous(),
        "encoder_linear.bias": own["b_enc"],
        "decoder_linear.weight": own["W_dec"].T.contiguous(),
        "decoder_linear.bias": own["b_dec"],
    }
    folder.mkdir(parents=True)
    name = "Llama-3.1-8B-Instruct-SAE-l19.pth"
    torch.save(tensors, folder / name)
    repository = f"{folder.parent.name}/{folder.name}"
    sizes = {"d_in": x.shape[1], "d_sae": LATENTS}
    return by_sae_lens(folder.parents[1], "goodfire", repository, name, x, **sizes)


# --- all of them ----------------------------------------------------------------------------------

LENS, DICTIONARIES, SPARSIFY = "sae-lens", "dictionary_learning", "sparsify"
PACKAGES = {LENS: "sae-lens", DICTIONARIES: "dictionary-learning", SPARSIFY: "eai-sparsify"}
SCOPE = "gemma-scope-2b-pt-{}/layer_2/width_16k/average_l0_20"
MAKERS: dict[tuple[str, str], tuple[str, Maker]] = {
    (LENS, "standard"): ("a", sae_lens("standard")),
    (LENS, "standard, b_dec not subtracted"): (
        "a",
        sae_lens("standard", apply_b_dec_to_input=False),
    ),
    (LENS, "gated"): ("a", sae_lens("gated")),
    (LENS, "jumprelu"): ("a", sae_lens("jumprelu")),
    (LENS, "topk"): ("a", sae_lens("topk", k=K)),
    (LENS, "topk, rescaled by decoder norms"): (
        "a",
        sae_lens("topk", k=K, rescale_acts_by_decoder_norm=True),
    ),
    (LENS, "transcoder"): ("a", sae_lens("transcoder")),
    (LENS, "skip_transcoder"): ("a", sae_lens("skip_transcoder")),
    (LENS, "jumprelu_transcoder"): ("a", sae_lens("jumprelu_transcoder")),
    (LENS, "jumprelu_skip_transcoder"): ("a", sae_lens("jumprelu_skip_transcoder")),
    (SPARSIFY, "SparseCoder"): ("layers.2", sparsify()),
    (SPARSIFY, "transcoder"): ("layers.2.mlp", sparsify(transcode=True)),
    (SPARSIFY, "skip transcoder"): ("layers.2.mlp", sparsify(transcode=True, skip_connection=True)),
    (DICTIONARIES, "AutoEncoder"): ("a", dictionary_learning("AutoEncoder")),
    (DICTIONARIES, "AutoEncoderNew"): ("a", dictionary_learning("AutoEncoderNew")),
    (DICTIONARIES, "GatedAutoEncoder"): ("a", dictionary_learning("GatedAutoEncoder")),
    (DICTIONARIES, "JumpReluAutoEncoder"): ("a", dictionary_learning("JumpReluAutoEncoder")),
    (DICTIONARIES, "AutoEncoderTopK"): ("a", dictionary_learning("AutoEncoderTopK", k=K)),
    (DICTIONARIES, "BatchTopKSAE"): ("a", dictionary_learning("BatchTopKSAE", k=K)),
    (DICTIONARIES, "MatryoshkaBatchTopKSAE"): (
        "a",
        dictionary_learning("MatryoshkaBatchTopKSAE", k=K, group_sizes=[128, 256]),
    ),
    ("Gemma Scope", "residual stream"): (SCOPE.format("res"), gemma_scope("res")),
    ("Gemma Scope", "transcoder"): (SCOPE.format("transcoders"), gemma_scope("transcoders")),
    ("Gemma Scope 2", "residual stream"): (
        "gemma-scope-2-270m-pt/resid_post/layer_2",
        gemma_scope_2("sae"),
    ),
    ("Gemma Scope 2", "transcoder"): (
        "gemma-scope-2-270m-pt/transcoder/layer_2",
        gemma_scope_2("transcoder"),
    ),
    ("Gemma Scope 2", "transcoder with a skip"): (
        "gemma-scope-2-270m-pt/transcoder/layer_2_affine",
        gemma_scope_2("transcoder", affine=True),
    ),
    ("Llama Scope", "JumpReLU"): ("Llama3_1-8B-Base-LXR-8x/L2R", llama_scope()),
    ("Llama Scope", "R1 Distill"): ("Llama-Scope-R1-Distill/L2R", llama_scope(distilled=True)),
    ("Goodfire", "ReLU"): ("Goodfire/Llama-3.1-8B-Instruct-SAE-l19", goodfire),
}


def version(tool: str) -> str:
    """Of the package that the library's side ran in."""
    package = PACKAGES.get(tool, "sae-lens")
    number = importlib.metadata.version(package)
    return number if tool in PACKAGES else f"by {package} {number}"


def exchange(tool: str, what: str, root: Path, x: Tensor) -> tuple[Row, Autoencoder, Theirs]:
    """One autoencoder of a library, made, saved, read by bitlens and compared on rows x."""
    place, make = MAKERS[tool, what]
    with torch.no_grad():
        theirs = make(root / place, x)
        ours = Autoencoder.from_pretrained(root / place)
        codes = ours.encode(x)
        rebuilt = ours.decode(codes, x)
    row = Row(
        tool,
        version(tool),
        IN,
        what,
        BUNDLED,
        float((codes - theirs.codes).abs().max() / theirs.codes.abs().max()),
        float((rebuilt - theirs.reconstruction).abs().max() / theirs.reconstruction.abs().max()),
        int(((codes != 0) != (theirs.codes != 0)).sum()),
        codes.numel(),
    )
    return row, ours, theirs


def hidden_states(root: Path) -> Tensor:
    """Some of the bundled model `[n, d_in]`, by way of a store below `root`."""
    model = LanguageModel.load("bundled", ["layers.2"])
    reader = TextConfig(("bundled",)).reader(model.tokenizer, 0.1)
    harvest(model, reader, root / "hidden", max_rows=2000)
    return next(iter(ActivationStore(root / "hidden").read("all"))).hidden[:1500].float()


def imported(bundled: Mapping[str, Path], real: Path | None = None) -> Iterator[Row]:
    """All of them, on hidden states of the bundled model."""
    x = exchanged_states(bundled["bae"].parent / "store-0", "usual")
    with tempfile.TemporaryDirectory() as folder:
        for number, (tool, what) in enumerate(MAKERS):
            yield exchange(tool, what, Path(folder) / str(number), x)[0]
