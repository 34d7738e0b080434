"""The benchmark of speed: what it measures, not how long that takes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.speed.__main__ import main
from benchmarks.speed.cases import CASES
from benchmarks.speed.machine import peaks
from benchmarks.speed.rivals import versions
from benchmarks.speed.run import run_bench
from benchmarks.speed.timing import interleaved, peak_growth

from bitlens.bits.packed import PackedBits
from bitlens.bits.statistics import nearest
from bitlens.errors import BitlensError

QUICK = ["--sizes", "64x128", "--rows", "4096", "--budget", "0"]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict:
    path = tmp_path_factory.mktemp("bench") / "numbers.json"
    cases = [case for case in CASES if case != "harvest"]  # the slow one is in a test of its own
    main([*QUICK, "--cases", *cases, "--json", str(path)])
    return json.loads(path.read_text())


@pytest.mark.slow
def test_every_case_begins_with_bitlens_itself(result: dict) -> None:
    seen: dict[tuple[str, str], list[dict]] = {}
    for figure in result["figures"]:
        seen.setdefault((figure["case"], figure["size"]), []).append(figure)
    cases = {case.split(":")[0] for case, _ in seen}
    assert len(cases) == len(CASES) - 1, cases
    for (case, _), figures in seen.items():
        assert figures[0]["name"] == "bitlens"
        if not case.startswith("growth"):
            assert figures[0]["times"] == 1.0
            for figure in figures:
                assert figure["times"] == pytest.approx(figure["seconds"] / figures[0]["seconds"])


@pytest.mark.slow
def test_figures_are_positive_and_have_floors(result: dict) -> None:
    for figure in result["figures"]:
        assert figure["seconds"] > 0
        assert figure["peak_bytes"] is None or figure["peak_bytes"] >= 0
        assert figure["floor"] is None or figure["floor"] > 0
        if figure["name"] == "bitlens" and not figure["case"].startswith("growth"):
            assert figure["floor"] is not None


@pytest.mark.slow
def test_the_machine_and_the_rivals_are_named(result: dict) -> None:
    assert result["machine"]["torch"] == torch.__version__
    assert set(result["rivals"]) == set(versions())
    assert all(value > 0 for value in result["peaks_per_second"].values())


@pytest.mark.slow
def test_harvest_is_held_against_the_bare_forward_pass() -> None:
    figures = run_bench(["64x128"], ["harvest"], 4096, 0)["figures"]
    assert [figure["name"] for figure in figures] == ["bitlens", "bare forward pass"] * 2
    assert figures[0]["floor"] == figures[1]["seconds"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--sizes", "512"], "written as 512x2048"),
        (["--sizes", "64x100"], "multiple of 64"),
        (["--cases", "nothing"], "choose from: covariance"),
        (["--rows", "10"], "at least 4,096 rows"),
    ],
)
def test_bad_input_gets_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error


def test_functions_take_turns() -> None:
    calls: list[str] = []
    timings = interleaved(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, budget=0
    )
    assert calls == list("aabb" + "ab" * 3)
    assert timings["a"].seconds >= 0


def test_peak_growth_sees_what_a_call_holds_for_a_moment() -> None:
    size = 64 << 20

    def hold() -> None:
        np.ones(size, np.uint8)

    grown = peak_growth(hold)
    if grown is None:
        pytest.skip("this system does not tell")
    assert 0.9 * size < grown < 1.5 * size
    small = peak_growth(lambda: None)
    assert small is not None
    assert small < size / 8


@pytest.mark.slow
def test_peaks_are_those_of_a_real_file(tmp_path: Path) -> None:
    assert peaks(tmp_path)["bytes from disk"] > 0
    assert list(tmp_path.iterdir()) == []


def test_search_finds_what_faiss_finds() -> None:
    faiss = pytest.importorskip("faiss")
    seed = torch.Generator().manual_seed(0)
    codes = PackedBits.pack(torch.rand(5000, 200, generator=seed) < 0.3)
    queries = PackedBits.pack(torch.rand(20, 200, generator=seed) < 0.3)
    index = faiss.IndexBinaryFlat(256)
    index.add(codes.numpy().view(np.uint8))
    distances, _ = index.search(queries.numpy().view(np.uint8), 10)
    own, indices = nearest(queries, codes, 10)
    assert torch.equal(
        own, torch.from_numpy(distances)
    )  # which of the equally near ones is up to faiss
    assert all(len(set(row.tolist())) == 10 for row in indices)


def test_a_rival_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.speed import rivals

    monkeypatch.setattr(rivals, "versions", dict)
    with pytest.raises(BitlensError, match="needs it installed"):
        rivals.sae_lens_topk_step(8, 64, 2, torch.zeros(4, 8))
