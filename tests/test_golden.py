"""What version 0.1 wrote, kept in `golden/0.1`: it opens for ever, to the same numbers.

A later format gets a folder of its own beside it, and what is there is never written again. It was
made by `python tests/test_golden.py NEW-FOLDER`, with the version whose name it has.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import signal
import sqlite3
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bitlens import (
    ActivationStore,
    Autoencoder,
    BinaryAutoencoder,
    Codes,
    TrainConfig,
    entropy,
    train,
)
from bitlens.compression.file import MAGIC, PREFIX, Compressed
from bitlens.compression.store import reconstruct
from bitlens.comsem.calls import Calls, Judgement
from bitlens.comsem.judges import Question
from bitlens.comsem.openai_judge import OpenAIJudge
from bitlens.comsem.openai_server import OpenAIServer
from bitlens.errors import BitlensError, Interrupted
from bitlens.report.kept import kept_evaluation
from test_cli import run

GOLDEN = Path(__file__).parent / "golden" / "0.1"
RUNS = {"descent": [], "step": ["--preset", "step"], "topk": ["--architecture", "topk", "--k", 3]}
QUESTIONS = [Question("a letter", f"text {i}") for i in range(3)]
BEGUN: dict[str, Any] = {
    "n_latents": 12,
    "steps": 12,
    "batch_size": 16,
    "log_every": 3,
    "device": "cpu",
}
SHOWN = 4  # rows whose reconstructions are kept


def measured(folder: Path) -> dict[str, Any]:
    """The numbers of what is in such a folder."""
    store, codes = ActivationStore(folder / "store"), Codes(folder / "codes")
    hidden = torch.cat([store.shard(i)["hidden"] for i in range(len(store.shards))])
    file = Compressed(folder / "states.bits")
    found: dict[str, Any] = {
        "rows": digest(hidden),
        "mean": store.mean.tolist(),
        "scale": store.scale,
        "columns": {name: getattr(codes, name).tolist() for name in ("document", "position")},
        "codes": digest(codes.bits.words),
        "entropy": entropy(codes.bits, codes.document).bits_tree.value,
        "compressed": {str(document): digest(bits.words) for document, bits in file},
        "damaged": file.verify(),
        "numbers": (kept_evaluation(folder / "descent") or {})["numbers"],
    }
    for name in RUNS:
        autoencoder = Autoencoder.from_pretrained(folder / name)
        values = autoencoder.encode(hidden)
        found[name] = {
            "on": (values != 0).int().tolist(),
            "x_hat": autoencoder.decode(values)[:SHOWN].tolist(),
        }
    autoencoder = BinaryAutoencoder.from_pretrained(folder / "descent")
    bits = next(iter(file))[1]
    found["decompressed"] = reconstruct(autoencoder, bits)[:SHOWN].tolist()
    with Calls(folder / "calls.sqlite") as calls:
        found["spent"] = calls.spent()._asdict()
        with contextlib.closing(sqlite3.connect(folder / "calls.sqlite")) as database:
            found["judgements"] = database.execute("SELECT * FROM judgements").fetchall()
            (url,) = database.execute("SELECT DISTINCT judge FROM calls").fetchone()
        judge = OpenAIJudge(OpenAIServer("rule", url.split(" at ")[1], prices=(1.0, 2.0)), calls, 2)
        assert judge.estimate(QUESTIONS).calls == 0, "every answer is found again"
        found["verdicts"] = [verdict.yes for verdict in judge.answer(QUESTIONS)]
    return json.loads(json.dumps(found))


def digest(tensor: Tensor) -> str:
    """Of numbers, to the last bit."""
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A copy, since SQLite writes to what it reads."""
    return shutil.copytree(GOLDEN, tmp_path / "golden")


@pytest.mark.slow
def test_what_version_0_1_wrote_opens_to_the_same_numbers(golden: Path) -> None:
    expected, found = json.loads((golden / "expected.json").read_text()), measured(golden)
    assert close(found, expected)


def close(found: Any, expected: Any) -> bool:
    """The same, and floats to 1e-6."""
    if isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)
    elif isinstance(expected, dict | list):
        keys = expected.keys() if isinstance(expected, dict) else range(len(expected))
        assert len(found) == len(expected)
        assert all(close(found[key], expected[key]) for key in keys)
    else:
        assert found == expected
    return True


def test_a_run_of_version_0_1_goes_on(golden: Path) -> None:
    store = ActivationStore(golden / "store")
    train(store, TrainConfig(**BEGUN), golden / "begun", resume=True)
    lines = (golden / "begun" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3, 6, 9, 12]


def later(path: Path) -> None:
    """Give a file the schema of a later version."""
    content = path.read_bytes()
    if path.suffix == ".sqlite":
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA user_version = 99")
    elif content.startswith(MAGIC):
        length = PREFIX.unpack_from(content)[1]
        head = content[PREFIX.size : PREFIX.size + length].replace(b'"schema": 1', b'"schema": 9')
        rest = content[PREFIX.size + length :]
        path.write_bytes(PREFIX.pack(MAGIC, length, zlib.crc32(head)) + head + rest)
    elif path.suffix == ".safetensors":
        length = struct.unpack_from("<Q", content)[0]
        head = content[8 : 8 + length].replace(rb"\"schema\": 1", rb"\"schema\": 9")
        path.write_bytes(content[:8] + head + content[8 + length :])
    else:
        path.write_bytes(re.sub(rb'"schema": \d+', b'"schema": 99', content))
    assert path.read_bytes() != content or path.suffix == ".sqlite"


def go_on(path: Path) -> None:
    """With the training that this file is of."""
    store = ActivationStore(path.parents[1] / "store")
    train(store, TrainConfig(**BEGUN), path.parent, resume=True)


OPENED: dict[str, Callable[[Path], object]] = {
    "store/manifest.json": lambda path: ActivationStore(path.parent),
    "codes/manifest.json": lambda path: Codes(path.parent),
    "descent/cfg.json": lambda path: Autoencoder.from_pretrained(path.parent),
    "descent/evaluation.json": lambda path: kept_evaluation(path.parent),
    "states.bits": Compressed,
    "calls.sqlite": Calls,
    "begun/training.json": go_on,
    "begun/state.safetensors": go_on,
}


@pytest.mark.parametrize("name", OPENED)
def test_what_a_later_version_wrote_is_refused_in_a_sentence(name: str, golden: Path) -> None:
    later(golden / name)
    with pytest.raises(BitlensError, match=r"newer|reads up to") as caught:
        OPENED[name](golden / name)
    said = str(caught.value)
    assert golden.joinpath(name).name in said
    assert re.search(r"(upgrade|update) bitlens[^.]*\.$", said), said


# --- how they were made


def rows() -> Iterator[np.ndarray]:
    """Two files of rows that a few bits explain, the same everywhere."""
    random = np.random.RandomState(0)  # whose numbers never change
    directions = random.standard_normal((5, 8))
    for _ in range(2):
        bits = random.random_sample((48, 5)) < 0.3
        yield (bits @ directions + 0.05 * random.standard_normal((48, 8)) + 2).astype(np.float32)


def make(folder: Path) -> None:
    """Write all of it with the installed version."""
    from language_model_server import LanguageModelServer

    folder.mkdir()
    for i, some in enumerate(rows()):
        document = np.arange(len(some)) // 6 + 8 * i
        np.savez(folder / f"rows-{i}.npz", hidden=some, document=document)
    files, store = [folder / "rows-0.npz", folder / "rows-1.npz"], folder / "store"
    small = ["--n-latents", 12, "--batch-size", 16, "--device", "cpu"]
    commands = [["import", *files, "--documents", "document", "--out", store]]
    for name, settings in RUNS.items():
        out = ["--out", folder / name, "--steps", 60, *small]
        commands.append(["train", store, *out, *settings])
    commands += [
        ["encode", folder / "descent", store, "--out", folder / "codes"],
        ["compress", folder / "descent", store, "--out", folder / "states.bits"],
        ["evaluate", folder / "descent", store],
    ]
    assert not any(run(*arguments) for arguments in commands)
    with pytest.raises(Interrupted):
        train(
            ActivationStore(store),
            TrainConfig(**BEGUN),
            folder / "begun",
            report=lambda record: signal.raise_signal(signal.SIGINT),
        )
    with (
        Calls(folder / "calls.sqlite") as calls,
        LanguageModelServer(lambda prompt: "1. yes\n2. no" if "2." in prompt else "yes") as server,
    ):
        judge = OpenAIJudge(OpenAIServer("rule", server.url, prices=(1.0, 2.0)), calls, 2)
        found = zip(QUESTIONS, judge.answer(QUESTIONS), strict=True)
        judgements = [
            Judgement(3, question.explanation, question.text, row, "positive", verdict)
            for row, (question, verdict) in enumerate(found)
        ]
        calls.record("a run", judge.name, judgements)
    for path in (*files, *folder.glob("*/report.html")):
        path.unlink()
    (folder / "expected.json").write_text(json.dumps(measured(folder)) + "\n")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
