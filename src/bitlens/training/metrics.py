"""Where a run's numbers go: always `metrics.jsonl`; tensorboard and wandb if asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bitlens.errors import BitlensError
from bitlens.files import replacing
from bitlens.options import Logger

METRICS = "metrics.jsonl"


class MetricsLog:
    """Appends one object a line to `metrics.jsonl` and passes it on to the loggers.

    Opened at a step, it first drops the lines after that step, so that a resumed run has every step once.
    """

    def __init__(
        self,
        folder: Path,
        step: int,
        loggers: tuple[Logger, ...] = (),
        about: dict[str, Any] | None = None,
    ):
        path = folder / METRICS
        kept = []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:  # the last line of a killed run
                    continue
                if record["step"] <= step:
                    kept.append(line + "\n")
        with replacing(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        self._loggers = [_open_logger(name, folder, about or {}) for name in loggers]

    def write(self, record: dict[str, float | int]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for log in self._loggers:
            log(record)

    def close(self) -> None:
        self._file.close()
        for log in self._loggers:
            log(None)


def _open_logger(name: Logger, folder: Path, about: dict[str, Any]) -> Any:
    """A function of a record, or of None to close."""
    try:
        if name == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(folder / "tensorboard"))

            def log_tensorboard(record: dict[str, Any] | None) -> None:
                if record is None:
                    return writer.close()
                for key, value in record.items():
                    if key != "step":
                        writer.add_scalar(key, value, record["step"])
                return None

            return log_tensorboard
        import wandb  # pyright: ignore[reportMissingImports]

        run = wandb.init(project="bitlens", name=folder.name, dir=str(folder), config=about)
        return lambda record: (
            run.finish() if record is None else run.log(record, step=record["step"])
        )
    except ImportError:
        raise BitlensError(f"Logging to {name} needs its library: pip install {name}.") from None
