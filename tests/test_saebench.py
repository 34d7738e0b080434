"""SAEBench's own evaluations of an autoencoder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from bitlens.autoencoders import Autoencoder
from bitlens.cli import main
from bitlens.errors import BitlensError
from bitlens.hidden import ActivationStore

COMMAND = ["--batches", "2", "--batch-size", "4", "--context", "64", "--overwrite"]


@pytest.mark.slow
def test_its_numbers_are_those_of_the_autoencoder(codes_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("sae_bench")
    run, numbers = codes_folder.parent / "run", tmp_path / "numbers.json"
    main(["saebench", str(run), "--out", str(tmp_path / "out"), *COMMAND, "--json", str(numbers)])
    found = json.loads(numbers.read_text())
    store = ActivationStore(codes_folder.parent / "store")
    x = torch.cat([rows.hidden.float() for rows in store.read("usual")])[:4096]
    ours = Autoencoder.from_pretrained(run)
    with torch.no_grad():
        cosine = float(torch.cosine_similarity(x, ours(x), dim=1).mean())
    on = float((ours.encode(x) != 0).sum(1).float().mean())
    core = found["core"]
    assert core["cossim"] == pytest.approx(cosine, abs=0.03)  # on other rows
    assert 0.5 < core["explained_variance"] < 1
    assert core["l0"] == pytest.approx(on, rel=0.25)
    assert core["ce_loss_without_sae"] < core["ce_loss_with_sae"] < core["ce_loss_with_ablation"]
    assert 0 < found["meta_structure"]["decoder_fraction_variance_explained"] < 1
    kept = json.loads((tmp_path / "out" / "core.json").read_text())
    assert kept["eval_type_id"] == "core"
    assert len(kept["eval_result_details"]) == ours.n_latents
    bad = ["saebench", str(run), "--out", str(tmp_path / "other"), "--text", str(tmp_path / "none")]
    with pytest.raises(SystemExit):
        main(bad)
    assert not (tmp_path / "other" / "core.json").exists()
    with pytest.raises(SystemExit):  # what was found before is still there
        main([*bad[:2], "--out", str(tmp_path / "out"), *bad[4:], "--overwrite"])
    assert json.loads((tmp_path / "out" / "core.json").read_text()) == kept


@pytest.mark.slow
def test_a_hook_point_without_a_name_there_is_refused(codes_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("sae_bench")
    from bitlens.ecosystem.saebench import bench

    autoencoder = Autoencoder.from_pretrained(codes_folder.parent / "run")
    autoencoder.metadata["hook"] = {"module": "layers.2.mlp.act_fn", "transformer_lens": None}
    with pytest.raises(BitlensError, match="`bitlens evaluate` measures them"):
        bench(autoencoder, "bundled", ["text"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_it_one_sentence_names_it(
    codes_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in {"sae_bench", *(name for name in sys.modules if name.startswith("sae_bench."))}:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit):
        main(["saebench", str(codes_folder.parent / "run"), "--out", str(tmp_path / "out")])
    assert "pip install --no-deps sae-bench" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
