"""Turn tagged sentences like the Brown corpus' into a file for `bitlens labels`: text, parts of
speech, genre.

    python tools/label_brown.py BROWN.jsonl.gz OUT.jsonl.gz [--documents 1500] [--sentences 10]

BROWN has a sentence a line: {"genre": "news", "tokens": ["The", ...], "tags": ["at", ...]}. A
document is some consecutive sentences of one genre. Tags become the twelve universal parts of
speech (Petrov et al. 2012).
"""

import argparse
import gzip
import itertools
import json
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

QUOTES = {"``": '"', "''": '"'}
OPENING, CLOSING = {"``", "(", "["}, {"''", ")", "]", ",", ".", ";", ":", "?", "!", "%"}
# The first pattern that matches the beginning of a tag decides.
UNIVERSAL = [
    (r"\*|rb|rn|wrb|q|wq", "ADV"),
    (r"nil|uh", "X"),
    (r"[^a-z]", "."),
    (r"v|be|do|hv|md", "VERB"),
    (r"n", "NOUN"),
    (r"wp|p", "PRON"),
    (r"j|od", "ADJ"),
    (r"in|cs", "ADP"),
    (r"a|dt|wdt|ex", "DET"),
    (r"cd", "NUM"),
    (r"cc", "CONJ"),
    (r"to|rp", "PRT"),
    (r"", "X"),
]


def universal(tag: str) -> str:
    """The universal part of speech of a Brown tag; that of the first word where two are joined."""
    return next(name for pattern, name in UNIVERSAL if re.match(pattern, tag.removeprefix("fw-")))


def document(sentences: list[dict[str, Any]]) -> dict[str, Any]:
    """Sentences of one genre -> text with single spaces where a printer puts them, and a span for
    every token."""
    text: str = ""
    spans: list[list[Any]] = []
    glue = True
    for token, tag in (
        (t, g) for s in sentences for t, g in zip(s["tokens"], s["tags"], strict=True)
    ):
        text += "" if glue or token in CLOSING else " "
        word: str = QUOTES.get(token, token)
        spans.append([len(text), len(text) + len(word), universal(tag)])
        text += word
        glue = token in OPENING
    return {"text": text, "spans": {"pos": spans}, "labels": {"genre": sentences[0]["genre"]}}


def documents(sentences: Iterable[dict[str, Any]], size: int) -> Iterable[dict[str, Any]]:
    for _, group in itertools.groupby(sentences, key=lambda sentence: sentence["genre"]):
        of_genre = list(group)
        yield from (document(of_genre[i : i + size]) for i in range(0, len(of_genre), size))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("brown", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--documents", type=int, default=1500, help="drawn at random, in the order of the corpus"
    )
    parser.add_argument("--sentences", type=int, default=10, help="of a document")
    args = parser.parse_args()
    opened = gzip.open if args.brown.suffix == ".gz" else open
    with opened(args.brown, "rt", encoding="utf-8") as file:
        everything = list(documents(map(json.loads, file), args.sentences))
    chosen = sorted(
        random.Random(0).sample(range(len(everything)), min(args.documents, len(everything)))
    )
    lines = "".join(json.dumps(everything[i]) + "\n" for i in chosen).encode()
    args.out.write_bytes(gzip.compress(lines, 9, mtime=0) if args.out.suffix == ".gz" else lines)
    print(f"{args.out}: {len(chosen):,} of {len(everything):,} documents")


if __name__ == "__main__":
    main()
