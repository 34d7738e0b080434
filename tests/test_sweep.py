"""A sweep gives what each of its runs gives alone."""

import json
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bitlens import sweeping
from bitlens.autoencoders import Autoencoder
from bitlens.cli import main
from bitlens.errors import BitlensError
from bitlens.hidden import ActivationStore, Corpus, LanguageModel, TensorSource
from bitlens.hidden.live import LiveSource
from bitlens.hidden.text import ContextReader
from bitlens.sweeping import sweep
from bitlens.training import TrainConfig, train
from bitlens.writing import locked

CONFIG = TrainConfig(n_latents=24, steps=20, batch_size=32, log_every=10, device="cpu")


def same(run, config, source):
    one, other = Autoencoder.from_pretrained(run), train(source, config, progress=False)
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def config_of(row, config=CONFIG):
    names = row.keys() & vars(config).keys()
    return TrainConfig(**{**vars(config), **{name: row[name] for name in names}})


GRID = {
    "architecture": ["bae", "topk"],
    "lam": [0.05, 0.1],
    "k": [2, 4],
    "batch_size": [32, 48],
    "seed": [0, 1],
}


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_every_run_equals_that_of_train_alone(tiny_store, tmp_path, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rows = sweep(tiny_store, GRID, tmp_path / "out", CONFIG)
        assert len(rows) == 16  # what has no effect makes no further run
        assert {row["rows"] for row in rows} == {rows[0]["rows"]}
        assert "held out" in rows[0]["rows"]
        for row in rows[::5]:
            assert same(row["run"], config_of(row), tiny_store), row
    finally:
        torch.set_num_threads(before)
    written = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert written["runs"] == rows
    assert rows[0]["run"].endswith("architecture=bae,lam=0.05,batch_size=32,seed=0")


def live(folder, text):
    model = LanguageModel.load(str(folder), ["layers.1"], device="cpu")
    reader = ContextReader(Corpus((str(text),)), model.tokenizer, 16, test_fraction=0.2)
    return LiveSource(model, reader, batch_size=4, window_contexts=16)


@pytest.mark.slow
def test_a_language_model_runs_once_for_all(tiny_llama, text_folder, tmp_path, monkeypatch):
    source, batches = live(tiny_llama, text_folder), []
    states = source.model.hidden_states
    monkeypatch.setattr(
        source.model, "hidden_states", lambda *a: batches.append(len(a[0])) or states(*a)
    )
    alone = train(source, CONFIG, progress=False)
    once = len(batches)
    batches.clear()
    rows = sweep(source, {"seed": [0, 1], "n_latents": [16, 24]}, tmp_path / "out", CONFIG)
    assert once > 5
    assert len(batches) <= once + 1  # the last window may still have been there
    other = live(tiny_llama, text_folder)
    for row in rows:
        assert same(row["run"], config_of(row), other)
        assert row["rows"] == "of training"
    assert alone.n_latents > 0


def test_what_diverges_or_is_refused_ends_alone(tmp_path):
    source = TensorSource(torch.randn(500, 8, generator=torch.Generator().manual_seed(0)))
    settings = [{"lr": 1e38}, {"n_latents": 8}, {"k": 99}, {}]
    config = TrainConfig(**{**vars(CONFIG), "architecture": "topk", "k": 4})
    rows = sweep(source, settings, tmp_path / "out", config)
    assert ["error" in row for row in rows] == [True, False, True, False]
    assert "not finite" in rows[0]["error"]
    assert "`k` must be" in rows[2]["error"]
    assert same(rows[3]["run"], config, source)
    searched = replace(CONFIG, steps=40)  # long enough for a restart of dead latents
    rows = sweep(source, {"lr": [1e30, 0.04]}, tmp_path / "searched", searched)
    assert ["error" in row for row in rows] == [True, False]
    assert "lower `lr`" in rows[0]["error"]
    with pytest.raises(BitlensError, match="`gamma` has no effect on any run"):
        sweep(source, {"gamma": [0.1], "lr": [0.1]}, tmp_path / "other", config)
    with pytest.raises(BitlensError, match="no setting 'lamb'"):
        sweep(source, {"lamb": [1]}, tmp_path / "other")
    with pytest.raises(BitlensError, match="not empty"):
        sweep(source, {"lam": [0.1]}, tmp_path / "out")


def test_a_plan_is_of_all_runs_and_leaves_a_former_sweep_alone(tmp_path, capsys, harvested):
    sweep(ActivationStore(harvested), {"seed": [0]}, tmp_path / "out", CONFIG)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")}
    numbers = [tmp_path / "one.json", tmp_path / "three.json"]
    base = ["train", str(harvested), "--out", str(tmp_path / "out"), "--overwrite", "--plan"]
    base += ["--n-latents", "24", "--batch-size", "32", "--device", "cpu", "--json"]
    main([*base, str(numbers[0])])
    main([*base, str(numbers[1]), "--sweep", "lam=.05,.1,.2"])
    assert "a sweep of 3 runs takes" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")} == before
    one, three = (json.loads(file.read_text())["parts"] for file in numbers)
    assert three["Adam"] == 3 * one["Adam"]
    assert three["rows"] == one["rows"]
    with pytest.raises(SystemExit):
        main([*base, str(numbers[1]), "--sweep", "architecture=topk", "k=500,501"])
    assert "must be between 1 and 24" in capsys.readouterr().err


def test_a_sweep_goes_to_an_address_and_is_one_processes(tmp_path, monkeypatch):
    pytest.importorskip("upath")
    monkeypatch.setenv("BITLENS_CACHE", str(tmp_path / "cache"))
    source = TensorSource(torch.randn(500, 8, generator=torch.Generator().manual_seed(0)))
    (row,) = sweep(source, {"seed": [1]}, f"memory://{tmp_path.name}", CONFIG)
    assert same(row["run"], config_of(row), source)
    with locked(tmp_path / "out"), pytest.raises(BitlensError, match="is being written by process"):
        sweep(source, {"seed": [1]}, tmp_path / "out", CONFIG)
    with locked(tmp_path / "out" / "seed=1"):  # as by a training of this run alone
        free, held = sweep(source, {"seed": [0, 1]}, tmp_path / "out", CONFIG, resume=True)
    assert "is being written by process" in held["error"]
    assert same(free["run"], config_of(free), source)


class Waiting(TensorSource):
    """Takes the fourth batch of 32 rows only once `go` is set."""

    go = threading.Event()

    def batches(self, size, *args):
        for i, batch in enumerate(super().batches(size, *args)):
            assert i != 3 or size != 32 or self.go.wait(60)
            yield batch


@pytest.mark.parametrize("own", [False, True])
def test_a_run_may_end_while_batches_are_read_ahead(tmp_path, monkeypatch, own):
    """As on a GPU. own: its own batch is being read, or that of the run before it."""
    source = Waiting(torch.randn(500, 8, generator=torch.Generator().manual_seed(0)))
    source.go.clear()
    close = sweeping._Member.close

    def closing(member):
        if own:
            source.go.set()
        close(member)
        source.go.set()

    monkeypatch.setattr(sweeping._Member, "close", closing)
    monkeypatch.setattr(sweeping, "_on_gpu", lambda members: True)
    settings = [{"lr": 1e38}, {}] if own else [{}, {"lr": 1e38, "batch_size": 31}]
    config = TrainConfig(**{**vars(CONFIG), "architecture": "topk", "k": 4, "log_every": 1})
    rows = sweep(source, settings, tmp_path / "out", config, progress=False)
    assert ["error" in row for row in rows] == [own, not own]
    assert "not finite" in rows[not own]["error"]
    assert same(rows[own]["run"], config, source)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_a_sweep_that_is_stopped_or_killed_goes_on(bitlens_command, harvested, tmp_path, sent):
    out = tmp_path / "out"
    arguments = ["train", harvested, "--out", out, "--device", "cpu", "--n-latents", 24]
    arguments += ["--steps", 100, "--batch-size", 32, "--checkpoint-every", 20, "--log-every", 10]
    arguments += ["--sweep", "lam=.05,.1", "seed=0,1"]
    command = bitlens_command(*arguments)
    states = (f"{out}/lam={lam},seed={seed}" for lam in (0.05, 0.1) for seed in (0, 1))
    last = [Path(state) / "state.safetensors" for state in states][-1]
    command.wait_until(last.exists)
    command.send(sent)
    status = command.wait()
    assert status == (1 if sent == signal.SIGTERM else -sent), command.output
    if sent == signal.SIGTERM:
        assert "4 of 4 runs are saved after step" in command.output
    again = bitlens_command(*arguments, "--resume")
    assert again.wait() == 0, again.output
    store = ActivationStore(harvested)
    config = TrainConfig(n_latents=24, steps=100, batch_size=32, log_every=10, device="cpu")
    for row in json.loads((out / "summary.json").read_text())["runs"]:
        assert same(row["run"], config_of(row, config), store)


def test_the_command_checks_values_as_flags(harvested, tmp_path, capsys):
    base = ["train", str(harvested), "--out", str(tmp_path / "out"), "--steps", "5"]
    base += ["--device", "cpu", "--batch-size", "32"]
    main([*base, "--sweep", "lam=.05,.1", "--plan"])
    assert capsys.readouterr().out.startswith("a sweep of 2 runs takes ")
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        main([*base, "--sweep", "lam=cheap"])
    assert "lam" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*base, "--sweep", "lam"])
    assert "--sweep takes" in capsys.readouterr().err
    file = tmp_path / "runs.json"
    file.write_text("[" * 100_000)
    with pytest.raises(SystemExit):
        main([*base, "--sweep", str(file)])
    assert "runs.json cannot be read" in capsys.readouterr().err
    file = tmp_path / "runs.toml"
    file.write_text('[[run]]\nn-latents = 16\n[[run]]\narchitecture = "topk"\nk = 500\n')
    with pytest.raises(SystemExit) as ended:
        main([*base, "--sweep", str(file)])
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert "n_latents=16" in said.out
    assert "1 of 2 runs have no result" in said.err
    assert "architecture=topk,k=500: --k must be between" in said.err
