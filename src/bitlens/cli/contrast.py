"""The command that tells two groups of text apart by latents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bitlens.cli.common import CodesFolder, Device, open_reader
from bitlens.errors import BitlensError
from bitlens.options import Unit

if TYPE_CHECKING:
    from torch import Tensor

    from bitlens.bits.codes import Codes
    from bitlens.bits.packed import PackedBits
    from bitlens.features.contrast import Contrast, Group

TOKENS = 4  # shown of a latent


class Compared(NamedTuple):
    """Rows of two groups of documents."""

    bits: PackedBits
    """with the rare state as 1"""
    token: Tensor
    document: Tensor
    positive: Tensor
    """bool `[rows]`"""
    negative: Tensor


def contrast(
    codes: CodesFolder,
    positive: tuple[str, ...],
    negative: tuple[str, ...],
    labels: Path | None = None,
    texts: tuple[str, ...] = (),
    run: Path | None = None,
    text_column: str = "text",
    documents: Unit = "auto",
    sample: int = 500,
    top: int = 20,
    explanations: Path | None = None,
    seed: int = 0,
    device: Device = "auto",
) -> dict[str, Any]:
    """Name the latents that tell two groups of documents apart, with intervals and tests.

    They are chosen on half of each group's documents and measured on the other half. Compared is
    the share of a document's tokens with the latent on, among documents of like length. "On" is a
    latent's rare state. Rows of outlying norm are left out.

    Args:
        codes: folder of codes, from `bitlens encode`.
        positive: the documents of one group: numbers of the codes' documents or ranges (20-40);
            with --labels or --texts one class, NAME=CLASS; or files of text, read now with --run.
        negative: the documents of the other group, in the same way.
        labels: labels of the codes' documents, as `bitlens labels` takes them.
        texts: tables whose texts are read now with --run; NAME is a column, or one of its labels.
        run: the autoencoder that made the codes.
        text_column: column of the text in tables.
        documents: what a document of a file is.
        sample: texts that are read of each group; of more, so many are drawn.
        top: latents shown.
        explanations: the folder of `bitlens interpret`, or its scores.jsonl.
        seed: seed of the halves, samples and permutations.
        device: auto, cpu, cuda.
    """
    from dataclasses import asdict

    from bitlens.bits.codes import Codes
    from bitlens.cli.search import read_explanations
    from bitlens.features.contrast import Group
    from bitlens.features.contrast import contrast as compare

    if labels is not None and texts:
        raise BitlensError("--labels are of the codes' documents, --texts are read now: name one.")
    if sample < 1:
        raise BitlensError(f"--sample must be at least 1, not {sample}.")
    corpus = Codes(codes)
    said = {} if explanations is None else read_explanations(explanations)
    sides = (positive, negative)
    if texts or any(Path(name).exists() for name in (*positive, *negative)):
        given = _texts(sides, texts, text_column, documents, sample, seed)
        compared = _read_now(corpus, run, given, device)
    else:
        compared = _of_codes(corpus, sides, labels, seed)
    groups = [
        Group.of(compared.bits, compared.document, rows, seed)
        for rows in (compared.positive, compared.negative)
    ]
    found = compare(*groups, top, seed)
    _show(corpus, found, said)
    return {"codes": str(codes), **asdict(found), "latents": [d._asdict() for d in found.latents]}


def _texts(
    sides: Sequence[Sequence[str]],
    tables: Sequence[str],
    column: str,
    unit: Unit,
    sample: int,
    seed: int,
) -> list[list[str]]:
    """The texts of both groups."""
    from bitlens.features.groups import texts_of, texts_where

    if not tables:
        return [texts_of(names, column, unit, sample, seed) for names in sides]
    if any(len(names) != 1 for names in sides):
        raise BitlensError("With --texts a group is one NAME=CLASS.")
    return [texts_where(tables, names[0], column, sample, seed) for names in sides]


def _read_now(
    codes: Codes, run: Path | None, texts: Sequence[Sequence[str]], device: str
) -> Compared:
    from bitlens.features.search import rates
    from bitlens.features.texts import encode_texts

    if run is None:
        raise BitlensError("Texts are read by the autoencoder of the codes; name it with --run.")
    model, autoencoder = open_reader(run, codes, device)
    first, second = texts
    read = encode_texts(model, autoencoder, [*first, *second])
    in_first = read.document < len(first)
    bits = rates(codes).canonical(read.bits)
    positive, negative = read.usual & in_first, read.usual & ~in_first
    return Compared(bits, read.token, read.document, positive, negative)


def _of_codes(
    codes: Codes, sides: Sequence[Sequence[str]], labels: Path | None, seed: int
) -> Compared:
    from bitlens import show
    from bitlens.features.contrast import apart
    from bitlens.features.groups import labelled, numbered
    from bitlens.features.search import rates, rows_of
    from bitlens.labels.sources import load_tokenizer, read_labels

    if labels is None:
        chosen = [numbered(codes.document, names) for names in sides]
    elif any(len(names) != 1 for names in sides):
        raise BitlensError("With --labels a group is one NAME=CLASS.")
    else:
        labellings = read_labels(labels, codes, load_tokenizer(codes))
        chosen = [labelled(labellings, names[0]) for names in sides]
    show.left_out(codes.outliers)
    first, second = (rows & codes.usual for rows in chosen)
    if (first & second).any():
        raise BitlensError("--positive and --negative share rows; name groups without common rows.")
    first, second = apart(codes.document, first, second, seed)
    rows = (first | second).nonzero()[:, 0]
    bits = rates(codes).canonical(rows_of(codes, rows.numpy()))
    return Compared(bits, codes.token[rows], codes.document[rows], first[rows], second[rows])


def _show(codes: Codes, found: Contrast, said: dict[int, str]) -> None:
    from bitlens import show

    tokens = _tokens(codes, [one.latent for one in found.latents])
    lines = [
        {
            "latent": one.latent,
            "tokens": tokens.get(one.latent, ""),
            "explanation": show.plain(said.get(one.latent, "")),
            "positive %": 100 * one.positive,
            "negative %": 100 * one.negative,
            "difference": f"{100 * one.difference:+.2f} ({100 * one.low:+.2f} to {100 * one.high:+.2f})",
            "q": one.q_value,
            "AUC": one.auc,
        }
        for one in found.latents
    ]
    if not said:
        lines = [{k: v for k, v in line.items() if k != "explanation"} for line in lines]
    show.say(
        f"{found.differing:,} of {found.tested:,} latents differ at a false discovery rate of 5 %, "
        "on all documents."
    )
    a, b = found.measured_on
    show.rows(f"{codes.path}: chosen on half, measured on {a} and {b} other documents", lines)
    show.out.print(show.SIGNS, style="dim")


def _tokens(codes: Codes, latents: list[int]) -> dict[int, str]:
    """Preferred tokens of some latents, in one line each."""
    from bitlens import show
    from bitlens.features.words import preferred_tokens
    from bitlens.labels.sources import load_tokenizer

    if codes.manifest.get("model") is None:
        return {}
    every = preferred_tokens(codes, load_tokenizer(codes), TOKENS)
    return {i: " ".join(show.token(token.text) for token in every[i]) for i in latents}
