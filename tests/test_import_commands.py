"""Every command that takes a run takes the folder of another library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bitlens.autoencoders import Autoencoder
from bitlens.cli import main
from bitlens.hidden import ActivationStore
from exchanged_imports import LATENTS, drawn

ROWS = 6000


def run(*arguments: Any) -> None:
    main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores of the bundled model; a JumpReLU of Gemma Scope and a skip transcoder of sparsify."""
    folder = tmp_path_factory.mktemp("made")
    hooks = ("layers.2", "layers.2.mlp:input", "layers.2.mlp")
    text = ("--text", "bundled", "--max-rows", ROWS, "--context", 64)
    run("harvest", "bundled", "--hook", *hooks, *text, "--out", folder / "stores")
    x = next(iter(ActivationStore(folder / "stores" / "layers.2").read("all"))).hidden.float()
    sae = folder / "sae" / "gemma-scope-2b-pt-res" / "layer_2"
    sae.mkdir(parents=True)
    own = drawn(x)
    np.savez(sae / "params.npz", **{name.lower(): t.numpy() for name, t in own.items()})
    transcoder = folder / "transcoder" / "layers.2.mlp"
    transcoder.mkdir(parents=True)
    theirs = {"encoder.weight": own["W_enc"].T.contiguous(), "encoder.bias": own["b_enc"]}
    theirs |= {"W_dec": own["W_dec"], "b_dec": own["b_dec"]}
    theirs["W_skip"] = torch.randn(len(own["b_dec"]), len(own["b_dec"])) / 100
    save_file(theirs, transcoder / "sae.safetensors")
    config = {"d_in": x.shape[1], "num_latents": LATENTS, "k": 9, "transcode": True}
    (transcoder / "cfg.json").write_text(json.dumps(config | {"skip_connection": True}))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sae", "transcoder"])
def test_commands_take_the_folder(made: Path, kind: str, tmp_path: Path) -> None:
    folder = next(file.parent for file in (made / kind).rglob("*.*") if file.is_file())
    store = made / "stores" / {"sae": "layers.2", "transcoder": "layers.2.mlp-input"}[kind]
    codes, own = tmp_path / "codes", tmp_path / "own"
    Autoencoder.from_pretrained(folder).save(own)
    numbers = []
    for number, path in enumerate((folder, own)):
        file = tmp_path / f"{number}.json"
        run("evaluate", path, store, "--contexts", 4, "--no-joint", "--json", file)
        numbers.append(json.loads(file.read_text()))
        del numbers[-1]["rows_per_second"]
    assert numbers[0] == numbers[1]
    assert abs(numbers[0]["ce_mean"] - numbers[0]["ce_zero"]) > 1e-3
    assert "JumpReLU autoencoder" in (folder / "report.html").read_text() or kind != "sae"
    run("encode", folder, store, "--out", codes)
    run("features", codes, "--run", folder, "--promotes")
    run("entropy", codes)
    run("match", folder, own, store, "--rows", 300)
    run("faithfulness", folder, store, "--contexts", 2, "--keep", 4)
    run("effects", folder, store, "--latents", 3, "--contexts", 4)
    run("search", codes, "--run", folder, "--text", "the old house")
    run("explore", folder, "--codes", codes, "--export", tmp_path / "page", "--no-model")
    assert (tmp_path / "page" / "index.html").exists()
