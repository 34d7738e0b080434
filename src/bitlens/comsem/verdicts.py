"""How the answers of language models are read: yes or no, or a phrase."""

from __future__ import annotations

import re
from typing import NamedTuple

LONGEST_EXPLANATION = 200  # characters

# What models that reason put around their thoughts. Some templates open the thought in the prompt:
# only its end is seen.
_TAG = r"(?:think(?:ing)?|thought|reasoning|reflection)"
_OPEN = rf"(?:<{_TAG}>|\[THINK\]|◁think▷)"
_THOUGHT = re.compile(rf"^.*(?:</{_TAG}>|\[/THINK\]|◁/think▷)", re.S | re.I)
_OPENED = re.compile(_OPEN, re.I)
_LEFT_OPEN = re.compile(rf"{_OPEN}\s*$", re.I)

_EMPHASIS = re.compile(r"[*_`~]")
_LABEL = r"(?:(?:question|text|answer|verdict|item|line|number|q|t|a)\s*)?#?"
_QUOTED = re.compile(r'"(?P<inside>(?:[^"\\\n]|\\.)*)(?:"|$)', re.M)
_SHORT = re.compile(rf"\s*(?:{_LABEL}\d{{1,4}}\W*)?(?:yes|no)?[\s.,!:]*", re.I)
_FIRST = re.compile(
    r"\W*(?:\d{1,4}\W+)?(yes|no)\b"
    r"(?=\s*(?:$|\n|[^\w\s])|\s+(?:because|since|as|the|it|this|that)\b)",
    re.I,
)
_STATED = re.compile(r"\banswer(?:\s+(?:is|would be))?\W+(yes|no)\b", re.I)
_LAST = re.compile(r"[.,:;!?\n]\s*(yes|no)\W*$", re.I)
_BOTH = re.compile(r"\b(?:yes\W+(?:(?:and|or|but)\W+)?no|no\W+(?:(?:and|or|but)\W+)?yes)\b", re.I)

_WORD = re.compile(r"\b(?:yes|no)\b", re.I)
_LOOSE = r"[\s,;:|\-–—=>→•\[\]{}().!']*"
_LIST = re.compile(rf"{_LOOSE}(?:\b(?:yes|no)\b{_LOOSE})+", re.I)
_ONLY = re.compile(rf"{_LOOSE}(?:\b(?:yes|no)\b{_LOOSE})?", re.I)
_ENDED = re.compile(r"(?:[^\w\s]|\b(?:yes|no))\s*$", re.I)
_BROKEN = re.compile(r"(\d\W*)\n\s*(?=(?:yes|no)\b)", re.I)
_AT_START = re.compile(rf"\W*{_LABEL}(\d{{1,4}})\b(?!\.\d)", re.I)
_WITHIN = re.compile(
    r"(?:(?<=[\s,;|(\[{])|(?<=yes\.)|(?<=no\.))"
    rf"[(\[{{]?{_LABEL}(\d{{1,4}})"
    r"(?:\s*(?:[.):\]}|→]|[-=]*>|=)+(?!\d)|\s+[-–—]+(?=\s)|(?=\s+(?:yes|no)\b))",
    re.I,
)


def parse_verdict(answer: str) -> bool | None:
    """Yes or no from "Yes.", "**No**", "1) yes"; None from contradictions and rambling."""
    return _verdict(_plain(answer))


def parse_verdicts(answer: str, n: int) -> list[bool | None]:
    """The answers to n questions; None where one is missing, unclear or contradicted.

    Numbers may be written in any usual way; without them, n answers and nothing else are read.
    """
    if n == 1:
        return [parse_verdict(answer)]
    plain = _plain(answer)
    if len(words := _bare_list(plain)) == n:
        return [*words]
    lines = [line for line in _BROKEN.sub(r"\1 ", plain).splitlines() if line.strip()]
    parts = [part for line in lines for part in _numbered_parts(line, n)]
    if not parts and len(lines) == n:
        verdicts = [_only_verdict(line) for line in lines]
        if None not in verdicts:
            return verdicts
    if [part.number for part in parts] != list(range(1, n + 1)):
        parts = [part for part in parts if not part.bare]
    by_number: dict[int, set[bool | None]] = {}
    for part in parts:
        by_number.setdefault(part.number, set()).add(_only_verdict(part.text))
    answers = (by_number.get(i, set()) for i in range(1, n + 1))
    return [verdicts.pop() if len(verdicts) == 1 else None for verdicts in answers]


def unfinished(answer: str) -> bool:
    """Whether it ends within a thought."""
    return bool(_OPENED.search(_THOUGHT.sub("", answer)))


def is_tag(token: str) -> bool:
    """Whether a thought begins or ends with this token."""
    return bool(_OPENED.fullmatch(token) or _THOUGHT.fullmatch(token))


def without_thought(prompt: str) -> str:
    """The prompt of a chat template; a thought that it begins is ended at once."""
    tag = _LEFT_OPEN.search(prompt)
    return f"{prompt.rstrip()}\n\n{tag[0][0]}/{tag[0].strip()[1:]}\n\n" if tag else prompt


def parse_explanation(answer: str) -> str:
    """The first line that says something, without quotes, emphasis or "Explanation:"."""
    lines = (line.strip(" \t*_`\"'“”-#") for line in _thoughtless(answer).splitlines())
    for line in lines:
        if phrase := re.sub(r"^(?:answer|explanation)(?:\W+|$)", "", line, flags=re.I).strip():
            return phrase[:LONGEST_EXPLANATION]
    return ""


def _thoughtless(answer: str) -> str:
    """Without the thoughts of a reasoning model; nothing if it never came to an end of them."""
    return "" if unfinished(answer) else _THOUGHT.sub("", answer)


def _plain(answer: str) -> str:
    """Without thoughts, emphasis, and texts repeated in quotes, which may say yes or no."""

    def unquoted(match: re.Match[str]) -> str:
        return match["inside"] if _SHORT.fullmatch(match["inside"]) else ""

    return _QUOTED.sub(unquoted, _EMPHASIS.sub("", _thoughtless(answer)))


def _bare_list(plain: str) -> list[bool]:
    """The answers of a list without numbers and anything else, but for words before a colon."""
    before, _, answers = plain.rpartition(":")
    if not _LIST.fullmatch(answers) or re.search(r"\d|\byes\b|\bno\b", before):
        return []
    return [word.lower() == "yes" for word in _WORD.findall(answers)]


def _verdict(plain: str) -> bool | None:
    if _BOTH.search(plain):
        return None
    given = [*_STATED.findall(plain), *_LAST.findall(plain)]
    if first := _FIRST.match(plain):
        given.append(first[1])
    words = {word.lower() for word in given}
    return words == {"yes"} if len(words) == 1 else None


class _Part(NamedTuple):
    """What is said of a number."""

    number: int
    text: str
    bare: bool
    """nothing between them: "1 yes, 2 no" may be counts"""


def _numbered_parts(line: str, n: int) -> list[_Part]:
    """What a line says of each number in it; nothing if an answer stands before them.

    A comment may name other numbers ("no, unlike 3. yes"): with comments the numbers have to be 1
    to n, each after a mark of punctuation.
    """
    marks = [first] if (first := _AT_START.match(line)) else []
    within = _WITHIN.finditer(line, marks[0].end() if marks else 0)
    marks += [mark for mark in within if 1 <= int(mark[1]) <= n]
    if not marks or _WORD.search(line[: marks[0].start()]):
        return []
    numbers = [int(mark[1]) for mark in marks]
    ends = [*(mark.start() for mark in marks[1:]), len(line)]
    texts = [line[mark.end() : end] for mark, end in zip(marks, ends, strict=True)]
    apart = numbers == list(range(1, n + 1)) and all(map(_ENDED.search, texts[:-1]))
    if len(marks) > 1 and not apart and not all(map(_ONLY.fullmatch, texts)):
        texts = [""] * len(marks)
    parts = []
    for number, mark, text in zip(numbers, marks, texts, strict=True):
        answered = re.match(r"\s+(?:yes|no)\b", text, re.I) is not None
        parts.append(_Part(number, text, bare=answered and mark[0].strip().isdigit()))
    return parts


def _only_verdict(text: str) -> bool | None:
    """The answer to one of several questions, if the other word is nowhere near."""
    words = {word.lower() for word in _WORD.findall(text)}
    return _verdict(text) if len(words) == 1 else None
