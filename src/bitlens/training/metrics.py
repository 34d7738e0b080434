"""Where a run's numbers go: always `metrics.jsonl`; tensorboard and wandb if asked for."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitlens.errors import BitlensError
from bitlens.files import replacing
from bitlens.options import Logger
from bitlens.remote import is_remote

METRICS = "metrics.jsonl"
Record = dict[str, Any]


def records(run: Path) -> list[Record]:
    """The lines of a run's `metrics.jsonl` that are records: the last one of a killed run may be
    none, nor those of a damaged file."""
    try:
        text = (run / METRICS).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    found = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict) and type(record.get("step")) is int:
                found.append(record)
    return found


class MetricsLog:
    """Appends one object a line to `metrics.jsonl` and passes it on to the loggers. Lines after the
    step at which it is opened are dropped, so that a resumed run has every step once."""

    def __init__(
        self, folder: Path, step: int, loggers: tuple[Logger, ...] = (), about: Record | None = None
    ) -> None:
        """about: the settings of the run, for wandb."""
        path = self._path = folder / METRICS
        kept = [json.dumps(each) + "\n" for each in records(folder) if each["step"] <= step]
        if is_remote(path):  # to what is there, nothing can be appended
            self._folder = tempfile.TemporaryDirectory(prefix="bitlens-")
            path = Path(self._folder.name, METRICS)
        with replacing(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        self._loggers = [_open_logger(name, folder, about or {}) for name in loggers]

    def send(self) -> None:
        """Before each checkpoint: what was written is there, too, where the folder is remote."""
        if is_remote(self._path):
            with replacing(self._path) as temporary:
                shutil.copyfile(self._file.name, temporary)

    def write(self, record: Record) -> None:
        """One line, and the loggers' share."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for log, _ in self._loggers:
            log(record)

    def close(self) -> None:
        """Nothing can be written afterwards."""
        self._file.close()
        self.send()
        for _, close in self._loggers:
            close()


def _open_logger(
    name: Logger, folder: Path, about: Record
) -> tuple[Callable[[Record], object], Callable[[], object]]:
    """-> (log a record, close)."""
    if name == "tensorboard" and is_remote(folder):
        raise BitlensError(f"tensorboard's files are appended to, which {folder} does not allow.")
    try:
        if name == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(folder / "tensorboard"))

            def log(record: Record) -> None:
                for key in record.keys() - {"step"}:
                    writer.add_scalar(key, record[key], record["step"])

            return log, writer.close
        import wandb  # pyright: ignore[reportMissingImports]

        place = None if is_remote(folder) else str(folder)
        run = wandb.init(project="bitlens", name=folder.name, dir=place, config=about)
        return lambda record: run.log(record, step=record["step"]), run.finish
    except ImportError:
        raise BitlensError(f"Logging to {name} needs its library: pip install {name}.") from None
