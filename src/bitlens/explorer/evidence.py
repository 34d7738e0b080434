"""What other commands found out about latents: explanations with verdicts, measured effects."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections import defaultdict
from pathlib import Path

from bitlens.comsem.examples import Examples
from bitlens.errors import BitlensError
from bitlens.explorer.keeping import Record

SCORES, CALLS = "scores.jsonl", "calls.sqlite"


def read_records(path: Path, what: str, way: str) -> dict[int, Record]:
    """A record a latent, from JSON lines with a `latent` in each."""
    records: dict[int, Record] = {}
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                record = json.loads(line)
                records[int(record["latent"])] = record
    except FileNotFoundError:
        raise BitlensError(f"{path} is missing, so there are no {what}; {way}.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BitlensError(f"{path} holds no {what} ({error!r}); {way}.") from error
    return records


def worded(score: Record) -> str:
    """The explanation of a latent in words; "" where there is none."""
    explanation = str(score.get("explanation") or "")
    return str(Examples.of(explanation) or explanation)


class Explanations:
    """The results of `bitlens interpret` in a folder: a score a latent, and single verdicts where
    judgements were recorded."""

    def __init__(self, folder: Path, codes: Path) -> None:
        """codes: whose latents these are, where the folder holds the results of several."""
        inner = folder / codes.name
        place = inner if (inner / SCORES).is_file() else folder
        way = "name the folder that `bitlens interpret` wrote, with `explanations`"
        self.scores = read_records(place / SCORES, "explanations", way)
        self._verdicts: dict[int, list[Record]] = defaultdict(list)
        self.judge: str | None = None
        for file in (place / CALLS, place.parent / CALLS):
            if file.is_file():
                self._read_verdicts(file, codes)
                break

    def _read_verdicts(self, file: Path, codes: Path) -> None:
        query = (
            "SELECT latent, judge, explanation, text, row, kind, yes FROM judgements "
            "WHERE run IN (?, ?, ?) ORDER BY latent, kind, row"
        )
        names = (codes.name, str(codes), str(codes.resolve()))
        try:
            # as it is: read, never written, and no other file is made beside it
            uri = f"{file.resolve().as_uri()}?mode=ro"
            with contextlib.closing(sqlite3.connect(uri, uri=True)) as record:
                found = record.execute(query, names).fetchall()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise BitlensError(
                f"The record of judgements {file} cannot be read: {error}."
            ) from error
        for latent, judge, explanation, text, row, kind, yes in found:
            if explanation != (self.scores.get(latent) or {}).get("explanation"):
                continue  # another latent's, as a null
            self.judge = judge
            before, _, rest = text.partition("«")
            token, _, after = rest.partition("»")
            said = None if yes is None else bool(yes)
            on = kind == "positive"
            verdict = {"before": before, "token": token, "after": after, "row": row}
            self._verdicts[latent].append(verdict | {"on": on, "said": said, "kind": kind})

    def words(self, latent: int) -> str:
        """The explanation; "" where there is none."""
        return worded(self.scores.get(latent) or {})

    def score(self, latent: int) -> float | None:
        """The balanced accuracy; chance is a half."""
        return (self.scores.get(latent) or {}).get("balanced_accuracy")

    def of(self, latent: int) -> Record | None:
        """Everything about it; None where nothing was said."""
        words = self.words(latent)
        if not words:
            return None
        score = self.scores[latent]
        return {
            "text": words,
            "score": score.get("balanced_accuracy"),
            "low": score.get("balanced_accuracy_low"),
            "high": score.get("balanced_accuracy_high"),
            "interpretable": score.get("interpretable"),
            "untested": score.get("untested") or "",
            "judge": self.judge,
            "verdicts": self._verdicts.get(latent, []),
        }
