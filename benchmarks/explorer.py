"""`python -m benchmarks.explorer`: how long the explorer takes to start and to answer, and how much
it sends, of a wide run whose codes are drawn at random.

Starts are processes of their own; answers are real requests to the server, timed at the client.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx2
import torch
import tyro

from bitlens.autoencoders import BinaryAutoencoder
from bitlens.bits.codes import Codes
from bitlens.bits.packed import PackedBits
from bitlens.hidden.loading import load_tokenizer
from bitlens.hidden.named import bundled_folder, digest
from bitlens.seeding import generator

HOOK, WIDTH = {"module": "layers.2"}, 256
PART = 1 << 14
TEXT = (
    "Once upon a time there was a little girl who lived in a wood with her mother, and she had a "
    "red cloak. One day her mother said to her, 'Take this cake to the king, and do not stop "
    "on the way.'"
)


def make(folder: Path, latents: int, rows: int) -> None:
    """A run and its codes: every latent is on at a token of its own, and anywhere."""
    g = generator("explorer benchmark")
    about = {"model": "bundled", "model_digest": digest("bundled"), "hook": HOOK}
    autoencoder = BinaryAutoencoder(WIDTH, latents, coding="step")
    autoencoder.initialise(g)
    autoencoder.scale.fill_(6.0)  # of these hidden states, about
    autoencoder.b_enc.data.fill_(-1.6)  # so that few latents are on
    autoencoder.metadata = {**about, "prepend_bos": True}
    autoencoder.save(folder / "run")
    vocabulary = len(load_tokenizer("bundled", None))
    assert bundled_folder().is_dir()
    Codes.write(folder / "codes", _parts(latents, rows, vocabulary, g), latents, about)


def _parts(latents: int, rows: int, vocabulary: int, g: torch.Generator):
    for first in range(0, rows, PART):
        n = min(PART, rows - first)
        token = torch.randint(10, vocabulary, (n,), generator=g)
        bits = torch.zeros(n, latents, dtype=torch.bool)
        own = torch.stack([token * 2 % latents, (token * 2 + 1) % latents], 1)
        anywhere = (torch.rand(n, 14, generator=g) ** 2 * latents).long()
        bits.scatter_(1, torch.cat([own, anywhere], 1), True)
        row = torch.arange(first, first + n)
        columns = {
            "token": token.int(),
            "document": row // 128,
            "position": (row % 128).int(),
            "usual": torch.ones(n, dtype=torch.bool),
        }
        yield PackedBits.pack(bits), columns


def start(folder: Path, *more: str) -> tuple[subprocess.Popen[str], str, float]:
    """-> the server, its address, and the seconds until it answered"""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "bitlens", "explore", str(folder / "run"), "--no-browser"]
    command += ["--codes", str(folder / "codes"), "--port", "0", *more]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    address = process.stdout.readline().split()[0]
    httpx2.get(f"{address}api/run.json", timeout=60).raise_for_status()
    return process, address, time.perf_counter() - begun


def milliseconds(client: httpx2.Client, *asked: tuple[str, str, object]) -> tuple[float, float]:
    """Of these requests -> median time, median size as sent"""
    times, sizes = [], []
    for method, path, content in asked:
        begun = time.perf_counter()
        with client.stream(method, path, json=content) as answer:
            size = sum(len(part) for part in answer.iter_raw())
        times.append(1000 * (time.perf_counter() - begun))
        sizes.append(size)
        assert answer.status_code == 200, path
    return statistics.median(times), statistics.median(sizes)


def measure(folder: Path, latents: int) -> dict[str, float]:
    """All numbers of one run."""
    found: dict[str, float] = {}
    process, _, found["first start, s"] = start(folder)
    process.terminate()
    process.wait()
    process, address, found["next start, s"] = start(folder)
    client = httpx2.Client(base_url=address, timeout=120)
    try:
        client.post("/api/text", json={"text": "A"})  # waits for the model
        for name, path in (("table", "latents.json"), ("run", "run.json")):
            found[f"{name}, ms"], found[f"{name}, KiB sent"] = milliseconds(
                client, *[("GET", f"/api/{path}", None)] * 5
            )
            found[f"{name}, KiB"] = len(client.get(f"/api/{path}").content)
        pages = [("GET", f"/api/latents/{i * 37 % latents}.json", None) for i in range(200)]
        found["latent, ms"], found["latent, KiB sent"] = milliseconds(client, *pages)
        text = {"text": TEXT}
        found["text, tokens"] = len(client.post("/api/text", json=text).json()["tokens"])
        found["text, ms"], _ = milliseconds(client, *[("POST", "/api/text", text)] * 9)
        hold = {**text, "holds": {"3": 1}}
        found["hold, ms"], _ = milliseconds(client, *[("POST", "/api/hold", hold)] * 9)
        near = {**text, "position": 9}
        found["near, ms"], _ = milliseconds(client, *[("POST", "/api/near", near)] * 5)
        find = {"on": [7], "off": [8]}
        found["find, ms"], _ = milliseconds(client, *[("POST", "/api/find", find)] * 5)
    finally:
        process.terminate()
        process.wait()
    begun = time.perf_counter()
    command = [sys.executable, "-m", "bitlens", "explore", str(folder / "run"), "--no-model"]
    command += ["--codes", str(folder / "codes"), "--export", str(folder / "site")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found["copy, s"] = time.perf_counter() - begun
    sizes = [path.stat().st_size for path in (folder / "site").rglob("*") if path.is_file()]
    found["copy, files"], found["copy, MiB"] = len(sizes), sum(sizes) / 2**20
    return {k: v / 1024 if "KiB" in k else v for k, v in found.items()}


def main(latents: int = 8192, rows: int = 1 << 17, out: Path | None = None) -> None:
    """Measure, and print the figures."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make(folder, latents, rows)
        found = {"latents": latents, "rows": rows, **measure(folder, latents)}
    for name, value in found.items():
        print(f"{name:<20}{value:>12,.1f}")
    if out is not None:
        out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    tyro.cli(main)
