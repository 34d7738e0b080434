"""Results as people see them: numbers with meanings, a line in a notebook, tables of pandas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple, get_type_hints

from bitlens.errors import BitlensError

SHOWN = 6  # entries of a list, and more are counted
LETTERS = 60


class Number(NamedTuple):
    """What a number means, and how tables format it: `fvu: Annotated[float, Number(...)]`."""

    meaning: str
    format: str = ""


def numbers_of(kind: type) -> dict[str, Number]:
    """The annotated numbers of a dataclass or named tuple, by name, in the order of its fields."""
    hints = get_type_hints(kind, include_extras=True)
    return {
        name: note
        for name, hint in hints.items()
        for note in getattr(hint, "__metadata__", ())
        if isinstance(note, Number)
    }


class Line(NamedTuple):
    """A number as tables show it, with the half width of its interval, and what it means."""

    name: str
    shown: str
    meaning: str


def listed(kind: type, values: Mapping[str, Any]) -> list[Line]:
    """Those of the annotated numbers of `kind` that are known, in the order of its fields."""
    return [
        Line(name, shown(name, values, number.format), number.meaning)
        for name, number in numbers_of(kind).items()
        if values.get(name) is not None
    ]


def shown(name: str, values: Mapping[str, Any], form: str) -> str:
    """The number of this name, and the half width of its interval where that is known."""

    def text(value: Any) -> str:
        return "-" if value is None else format(value, form)

    low, high = (values.get(f"{name}_{end}") for end in ("low", "high"))
    half = "" if low is None or high is None else f" ± {text((high - low) / 2)}"
    return text(values.get(name)) + half


def plain(text: str) -> str:
    """Text on one line: line ends become ⏎, other control characters a dot."""
    return "".join(c if c.isprintable() else "⏎" if c == "\n" else "·" for c in text)


def token(text: str) -> str:
    """A single token with spaces as dots, and other characters without ink as codes."""
    named = {" ": "·", "\n": "⏎"}
    return "".join(named.get(c) or (c if c.isprintable() else ascii(c)[1:-1]) for c in text) or "''"


def brief(self: Any) -> str:
    """The `repr` of a dataclass or named tuple: its numbers, and kind and size of what is long."""
    numbers = ", ".join(f"{name}={_short(value)}" for name, value in _fields(self).items())
    return f"{type(self).__name__}({numbers})"


def _short(value: Any) -> str:
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        kind, shape = str(value.dtype).removeprefix("torch."), list(value.shape)
        return f"{kind}{shape}" if shape else _short(value.item())
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str):
        return repr(value if len(value) <= LETTERS else value[: LETTERS - 1] + "…")
    if isinstance(value, list | tuple | dict) and not hasattr(value, "_fields"):
        if len(value) > SHOWN:
            return f"{len(value):,} in a {type(value).__name__}"
        if isinstance(value, dict):
            return "{" + ", ".join(f"{k!r}: {_short(v)}" for k, v in value.items()) + "}"
        if isinstance(value, list):
            return f"[{', '.join(map(_short, value))}]"
    return repr(value)


def to_pandas(results: Any) -> Any:
    """Results as a pandas DataFrame, which needs pandas to be installed.

    results: one result (a row, or columns where all of it is as long), a list of them (a row each),
    or a dict (rows with names). An estimate `x` has the columns `x`, `x_low` and `x_high`.
    """
    try:
        import pandas
    except ImportError:
        raise BitlensError("A DataFrame needs pandas: pip install pandas.") from None
    records = results.records() if hasattr(results, "records") else results
    if isinstance(records, Mapping) and records and all(map(_is_record, records.values())):
        return pandas.DataFrame(map(flat, records.values()), index=list(records))
    if isinstance(records, Iterable) and not _is_record(records):
        return pandas.DataFrame([flat(record) for record in records])
    row = flat(records)
    columns = {name: _plain(value) for name, value in _fields(records).items()}
    lengths = {len(value) if isinstance(value, list) else None for value in columns.values()}
    return pandas.DataFrame(columns if len(lengths) == 1 and None not in lengths else [row])


def _is_record(value: Any) -> bool:
    result = is_dataclass(value) and not isinstance(value, type)
    return result or hasattr(value, "_fields") or isinstance(value, Mapping)


def _fields(record: Any) -> dict[str, Any]:
    if isinstance(record, Mapping):
        return dict(record)
    if hasattr(record, "_fields"):
        return record._asdict()
    return {field.name: getattr(record, field.name) for field in fields(record) if field.repr}


def flat(record: Any) -> dict[str, Any]:
    """Numbers by name; those of an inner record by both names, but for `value` of an estimate."""
    if not _is_record(record):
        raise BitlensError(f"A {type(record).__name__} is no result that a row could be made of.")
    row: dict[str, Any] = {}
    values = record.as_dict() if hasattr(record, "as_dict") else _fields(record)
    for name, value in values.items():
        if not _is_record(value):
            row[name] = _plain(value)
            continue
        for inner, number in flat(value).items():
            row[name if inner == "value" else f"{name}_{inner}"] = number
    return row


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value
