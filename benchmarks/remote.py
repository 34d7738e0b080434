"""How fast a store at an address is read, beside the same store here.

    python -m benchmarks.remote STORE [--rounds 3]

The server is moto's S3, a process of its own on this machine, so its speed is no cloud's: what is
measured is what fsspec, the cache and the checksums cost. `cold` begins with an empty cache, `warm`
with a full one, `here` reads the store's own files; each in a process of its own, in turn. Seconds
are of all rows once in the order of the text, checksums and all, without imports.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

READ = """
import sys, time, torch
import bitlens as bl
start = time.perf_counter()
for rows in bl.ActivationStore(sys.argv[1]).read("all"):
    rows.hidden.sum()
print(time.perf_counter() - start)
"""
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder, "cache")
        os.environ |= {**KEYS, "AWS_DEFAULT_REGION": "us-east-1", "BITLENS_CACHE": str(cache)}
        server, address = serve()
        try:
            os.environ["AWS_ENDPOINT_URL"] = address
            import s3fs

            files = s3fs.S3FileSystem()
            files.mkdir("bucket")
            files.put(f"{arguments.store}/", "bucket/store/", recursive=True)
            table = measure(str(arguments.store), cache, arguments.rounds)
        finally:
            server.terminate()
            server.wait()
    size = sum(file.stat().st_size for file in arguments.store.iterdir())
    here = statistics.median(table["here"])
    print(f"{size / 2**20:,.0f} MiB, median of {arguments.rounds}")
    for name, seconds in table.items():
        middle = statistics.median(seconds)
        print(f"{name:<6}{middle:8.2f} s{size / 2**20 / middle:10,.0f} MiB/s{middle / here:8.2f}")


def measure(store: str, cache: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of each way, the ways in turn."""
    table: dict[str, list[float]] = {"here": [], "cold": [], "warm": []}
    for _ in range(rounds):
        for name, seconds in table.items():
            if name == "cold":
                shutil.rmtree(cache, ignore_errors=True)
            source = store if name == "here" else "s3://bucket/store"
            done = subprocess.run(
                [sys.executable, "-c", READ, source], capture_output=True, text=True, check=True
            )
            seconds.append(float(done.stdout))
    return table


def serve() -> tuple[subprocess.Popen[str], str]:
    """moto's server -> the process, and its address."""
    program = (
        "from moto.server import ThreadedMotoServer as S; import logging, sys; "
        "logging.getLogger('werkzeug').setLevel(40); s = S('127.0.0.1', 0, verbose=False); "
        "s.start(); print('http://%s:%d' % s.get_host_and_port(), flush=True); sys.stdin.read()"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout is not None
    return server, server.stdout.readline().strip()


if __name__ == "__main__":
    main()
