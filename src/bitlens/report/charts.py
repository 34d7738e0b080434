"""Where lines, bars and ticks lie in a drawing: numbers for the templates, in units of its box."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

WIDTH, HEIGHT = 360.0, 190.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 10.0, 12.0, 24.0  # margins
POINTS = 240  # of a curve; of longer ones means of neighbours are drawn
MARKS = 60  # of a curve that say their value
STEEP = 30.0  # times its least that a curve's largest value is, for a logarithmic axis
ROW = 40.0  # height of a horizontal bar with its name


class Tick(NamedTuple):
    """A place on an axis and what is written there."""

    at: float
    text: str


class Mark(NamedTuple):
    """A point or a bar, and what it says where a pointer rests on it."""

    x: float
    y: float
    width: float
    height: float
    says: str


class Chart(NamedTuple):
    """A drawing of `width` by `height`."""

    name: str
    meaning: str
    last: str
    """the number that the heading shows"""
    x: list[Tick]
    y: list[Tick]
    path: str
    marks: list[Mark]
    rules: list[Tick]
    width: float = WIDTH
    height: float = HEIGHT


def number(value: float) -> str:
    """Four digits, as people write them."""
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def line(name: str, meaning: str, x: Sequence[float], y: Sequence[float]) -> Chart:
    """A curve; its vertical axis begins at zero, or is logarithmic where the values differ much."""
    last, size = number(y[-1]), math.ceil(len(x) / POINTS)
    neighbours = [slice(start, start + size) for start in range(0, len(x), size)]
    x, y = ([sum(all_[some]) / len(all_[some]) for some in neighbours] for all_ in (x, y))
    if min(y) > 0 and max(y) > STEEP * min(y):
        heights = [math.log10(value) for value in y]
        powers = range(math.floor(min(heights)), math.ceil(max(heights)) + 1)
        labels = {float(power): number(10.0**power) for power in powers}
    else:
        heights = y
        labels = {value: number(value) for value in ticks(min(0.0, *y), max(0.0, *y))}
    across = _scale(min(x), max(x), LEFT, WIDTH - RIGHT)
    up = _scale(min(labels), max(labels), HEIGHT - BOTTOM, TOP)
    points = [(across(one), up(other)) for one, other in zip(x, heights, strict=True)]
    every = math.ceil(len(points) / MARKS)
    marks = [
        Mark(px, py, 0, 0, f"step {x[i]:,.0f}: {number(y[i])}")
        for i, (px, py) in enumerate(points)
        if i % every == 0 or i == len(points) - 1
    ]
    path = "M" + " L".join(f"{px:.1f} {py:.1f}" for px, py in points)
    within = [value for value in ticks(min(x), max(x), 4) if min(x) <= value <= max(x)]
    steps = [Tick(across(value), f"{value:,.0f}") for value in within]
    lines = [Tick(up(value), text) for value, text in labels.items()]
    return Chart(name, meaning, last, steps, lines, path, marks, [])


def histogram(edges: Sequence[float], counts: Sequence[int], dense: float, dead: float) -> Chart:
    """Latents by firing rate, on a logarithmic axis, with those that are never on at its left;
    rules where latents are called dead or dense."""
    never = bool(counts[0])
    room = 44.0 if never else 0.0
    low, high = math.log10(edges[0]), math.log10(edges[-1])
    across = _scale(low, high, LEFT + room, WIDTH - RIGHT)
    heights = [value for value in ticks(0, max(counts), 4) if value == int(value)]
    up = _scale(0, heights[-1], HEIGHT - BOTTOM, TOP)
    base = up(0)
    marks = []
    for i, count in enumerate(counts[1:]):
        left, right = (across(math.log10(edge)) for edge in edges[i : i + 2])
        says = f"on in {percent(edges[i])} to {percent(edges[i + 1])} of rows: {count:,} latents"
        if count:
            marks.append(Mark(left + 0.5, up(count), right - left - 1, base - up(count), says))
    x = [Tick(across(p), f"{100 * 10.0**p:.3g}") for p in range(math.ceil(low - 1e-9), 1)]
    if never:
        height = base - up(counts[0])
        marks.append(Mark(LEFT + 4, up(counts[0]), 18, height, f"never on: {counts[0]:,} latents"))
        x.insert(0, Tick(LEFT + 13, "never"))
    rules = [
        Tick(across(math.log10(rate)), word)
        for rate, word in ((dead, "dead"), (dense, "dense"))
        if edges[0] < rate < edges[-1]
    ]
    y = [Tick(up(value), f"{value:,.0f}") for value in heights]
    total = f"{sum(counts):,} latents"
    meaning = "latents by the share of rows in which they are on, in per cent"
    return Chart("Firing rates", meaning, total, x, y, "", marks, rules)


def bars(name: str, meaning: str, values: Mapping[str, tuple[float, str]], rule: str) -> Chart:
    """Horizontal bars, each under its name, `value, text`; the one called `rule` is also a line
    across all."""
    longest = max(value for value, _ in values.values()) or 1.0
    across = _scale(0, longest, 0, WIDTH)
    marks, names = [], []
    for i, (label, (value, text)) in enumerate(values.items()):
        marks.append(Mark(0, i * ROW + 20, max(1.0, across(value)), 12, f"{label}: {text}"))
        names.append(Tick(i * ROW + 14, f"{label}\n{text}"))
    rules = [Tick(across(values[rule][0]), rule)] if rule in values else []
    return Chart(name, meaning, "", [], names, "", marks, rules, WIDTH, len(values) * ROW)


def percent(share: float) -> str:
    """A share in per cent, three digits."""
    return f"{100 * share:.3g} %"


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from one at or below a range to one at or above it, about `most` steps."""
    if high <= low:
        return [low, low + 1]
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _scale(low: float, high: float, start: float, end: float) -> Any:
    """A map from a range of values to one of places."""
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)
