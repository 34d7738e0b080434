"""The command that tells two groups of text apart by latents, and flips these."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from bitlens.cli.common import CodesFolder, flags_given, open_reader
from bitlens.errors import BitlensError
from bitlens.options import Unit

if TYPE_CHECKING:
    from bitlens.autoencoders import Autoencoder
    from bitlens.bits.codes import Codes
    from bitlens.causal.flips import Change, Flipped
    from bitlens.features.contrast import Contrast, Group
    from bitlens.features.groups import Compared
    from bitlens.hidden import LanguageModel
    from bitlens.information.intervals import Estimate

    Opened = tuple[LanguageModel, Autoencoder]

TOKENS = 3  # shown of a latent
EXAMPLES = 3  # of each group, written with --json
MEANING = (
    "A latent that differs may just be the topic, style or length of the texts: what it does when "
    "it is flipped, beside latents of like rate, says whether the model's answer depends on it."
)


@dataclass(frozen=True)
class Source:
    """Where the documents are from."""

    labels: Path | None = None
    """labels of the codes' documents, as `bitlens labels` takes them"""
    texts: tuple[str, ...] = ()
    """tables whose texts are read now, with --run; NAME is a column, or a label of theirs"""
    text_column: str = "text"
    """column of the text in tables"""
    documents: Unit = "auto"
    """what a document of a file is"""
    sample: int = 500
    """texts that are read of each group; of more, so many are drawn"""


@dataclass(frozen=True)
class Check:
    """Whether what was found changes the model's answer."""

    check: bool = False
    """also flip latents in held-out documents, with --run: off where they are on more often, on in
    the other group"""
    prompt: str = ""
    """with --check: what follows each document, for example ' Sentiment:'"""
    answers: tuple[str, ...] = ()
    """with --check: one or two words whose log-probabilities are compared, with their space"""
    flips: int = 5
    """with --check: confirmed latents of each group that are flipped"""
    contexts: int = 40
    """with --check: held-out documents of each group in which they are"""


def contrast(
    codes: CodesFolder,
    positive: tuple[str, ...],
    negative: tuple[str, ...],
    source: Annotated[Source, tyro.conf.arg(name="")] = Source(),
    run: Path | None = None,
    check: Annotated[Check, tyro.conf.arg(name="")] = Check(),
    top: int = 20,
    explanations: Path | None = None,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Name the latents that tell two groups of documents apart, tested, and flip them.

    They are chosen on half of each group's documents and measured on the other half. Compared is
    the share of a document's tokens with the latent on, among documents of like length. "On" is a
    latent's rare state. Rows of outlying norm are left out.

    Args:
        positive: the documents of one group: numbers of the codes' documents or ranges (20-40);
            with --labels or --texts one class, NAME=CLASS; or files of text, read now with --run.
        negative: the documents of the other group, in the same way.
        run: the autoencoder that made the codes.
        top: latents shown.
        explanations: the folder of `bitlens interpret`, or its scores.jsonl.
        seed: seed of the halves, samples and permutations.
    """
    from bitlens import show
    from bitlens.bits.codes import Codes
    from bitlens.cli.search import read_explanations
    from bitlens.features.contrast import contrast as compare

    _refuse(source, check, run)
    corpus = Codes(codes)
    said = {} if explanations is None else read_explanations(explanations)
    opened = None if run is None else open_reader(run, corpus, device, whole=check.check)
    compared = _compared(corpus, (positive, negative), source, opened, seed)
    groups = compared.groups(seed)
    found = compare(groups[0], groups[1], top, seed)
    show.say(
        f"{found.differing:,} of {found.tested:,} latents differ at a false discovery rate of 5 %, "
        "on all documents."
    )
    flipped = []
    if check.check and opened is not None:
        flipped = _flipped(corpus, compared, groups, found, check, opened, seed)
    described = _described(corpus, compared, found, said)
    _show(f"{corpus.path}: chosen on half", found, described, flipped, check.answers)
    latents = [one._asdict() | described[one.latent] for one in found.latents]
    flips = [_numbers(one) for one in flipped]
    return {"codes": str(codes), **asdict(found), "latents": latents, "flipped": flips}


def _refuse(source: Source, check: Check, run: Path | None) -> None:
    if source.labels is not None and source.texts:
        raise BitlensError("--labels are of the codes' documents, --texts are read now: name one.")
    if source.sample < 1 or check.flips < 1 or check.contexts < 2:
        raise BitlensError(
            "--sample and --flips must be at least 1, and --contexts at least 2, not "
            f"{source.sample}, {check.flips} and {check.contexts}."
        )
    idle = flags_given(check, ("prompt", "answers", "flips", "contexts"))
    if idle and not check.check:
        raise BitlensError(f"Without --check there is no use for {', '.join(idle)}.")
    if check.check and run is None:
        raise BitlensError("--check flips bits in the model; name their autoencoder with --run.")


# --- the documents --------------------------------------------------------------------------------


def _compared(
    codes: Codes, sides: Sequence[Sequence[str]], source: Source, opened: Opened | None, seed: int
) -> Compared:
    """The rows of both groups."""
    if not source.texts and not any(Path(name).exists() for side in sides for name in side):
        return _of_codes(codes, sides, source.labels, seed)
    from bitlens.features.groups import Compared, texts_of, texts_where

    if opened is None:
        raise BitlensError("Texts are read by the autoencoder of the codes; name it with --run.")
    if source.texts and any(len(names) != 1 for names in sides):
        raise BitlensError("With --texts a group is one NAME=CLASS.")
    column, most = source.text_column, source.sample
    if source.texts:
        first, second = (texts_where(source.texts, one, column, most, seed) for (one,) in sides)
    else:
        unit = source.documents
        first, second = (texts_of(names, column, unit, most, seed) for names in sides)
    return Compared.read(codes, opened[0], opened[1], first, second)


def _of_codes(
    codes: Codes, sides: Sequence[Sequence[str]], labels: Path | None, seed: int
) -> Compared:
    from bitlens import show
    from bitlens.features.groups import Compared, labelled, numbered
    from bitlens.labels.sources import load_tokenizer, read_labels

    if labels is None:
        first, second = (numbered(codes.document, names) for names in sides)
    elif any(len(names) != 1 for names in sides):
        raise BitlensError("With --labels a group is one NAME=CLASS.")
    else:
        labellings = read_labels(labels, codes, load_tokenizer(codes))
        first, second = (labelled(labellings, names[0]) for names in sides)
    show.left_out(codes.outliers)
    return Compared.of_codes(codes, first, second, seed)


# --- flips ----------------------------------------------------------------------------------------


def _flipped(
    codes: Codes,
    compared: Compared,
    groups: Sequence[Group],
    found: Contrast,
    check: Check,
    opened: Opened,
    seed: int,
) -> list[Flipped]:
    """The confirmed latents of the positive group, then those of the negative one."""
    from bitlens import show
    from bitlens.causal.flips import Question, Reader, flip
    from bitlens.features.search import rates

    question = Question(check.prompt, check.answers)
    reader = Reader(opened[0], opened[1], question, rates(codes))
    documents = [
        [compared.text(number) for number in group.halves(seed)[1].documents[: check.contexts]]
        for group in groups
    ]
    flipped: list[Flipped] = []
    for more, (home, away) in ((True, documents), (False, documents[::-1])):
        some = [d for d in found.latents if d.confirmed and (d.auc > 0.5) == more][: check.flips]
        shares = [d.positive if more else d.negative for d in some]
        if some:
            flipped += flip(reader, home, away, [d.latent for d in some], shares, seed)
    if not flipped:
        show.warn("No latent was confirmed on the other half, so none is flipped.")
    return flipped


def _numbers(flipped: Flipped) -> dict[str, Any]:
    from bitlens.files import finite

    def numbers(change: Change) -> dict[str, Any]:
        estimates = {name: asdict(x) for name, x in change._asdict().items() if name != "documents"}
        return {"documents": change.documents, **finite(estimates)}

    return {"latents": flipped.latents, "off": numbers(flipped.off), "on": numbers(flipped.on)}


# --- the table ------------------------------------------------------------------------------------


def _described(
    codes: Codes, compared: Compared, found: Contrast, said: dict[int, str]
) -> dict[int, dict[str, Any]]:
    """Tokens that each latent prefers in these documents, examples, and its explanation."""
    from bitlens.labels.sources import load_tokenizer

    latents = [one.latent for one in found.latents]
    described: dict[int, dict[str, Any]] = {latent: {} for latent in latents}
    if codes.manifest.get("model") is not None and int(compared.token.min()) >= 0:
        tokenizer = load_tokenizer(codes)
        preferred = compared.tokens(latents, tokenizer, TOKENS)
        for latent, tokens in zip(latents, preferred, strict=True):
            positive, negative = compared.examples(latent, tokenizer, EXAMPLES)
            described[latent] = {
                "tokens": [token.text for token in tokens],
                "positive_examples": positive,
                "negative_examples": negative,
            }
    for latent in said.keys() & described.keys():
        described[latent]["explanation"] = said[latent]
    return described


def _show(
    title: str,
    found: Contrast,
    described: dict[int, dict[str, Any]],
    flipped: Sequence[Flipped],
    answers: Sequence[str],
) -> None:
    from bitlens import show

    effects = {one.latents[0]: _effect(one, bool(answers)) for one in flipped if not one.together}
    lines: list[dict[str, Any]] = []
    for one in found.latents:
        about = described[one.latent]
        line: dict[str, Any] = {"latent": str(one.latent)}
        line["tokens"] = " ".join(map(show.token, about.get("tokens", ())))
        if any("explanation" in each for each in described.values()):
            line["explanation"] = show.plain(about.get("explanation", ""))
        positive, negative, low, high = (
            100 * x for x in (one.positive, one.negative, one.low, one.high)
        )
        line["on, %"] = f"{positive:.3g} and {negative:.3g}"
        line["difference"] = f"{positive - negative:+.2f} ({low:+.2f} to {high:+.2f})"
        line |= {"q": f"{one.q_value:.2g}", "AUC": f"{one.auc:.2f}"}
        lines.append(line | effects.get(one.latent, {}))
    for one in flipped:
        if one.together:
            lines.append({"latent": " ".join(map(str, one.latents)), **_effect(one, bool(answers))})
    a, b = found.measured_on
    show.rows(f"{title}, measured on {a} + {b} other documents", lines)
    show.out.print(show.SIGNS, style="dim")
    if flipped:
        what = " - ".join(f"log p({answer!r})" for answer in answers)
        what = f"change of {what}" if answers else "KL divergence of the next token"
        show.say(
            f"Held off where they are on more often, or on in the other group: {what}, in nats; in "
            "parentheses that of other latents of like rate."
        )
    show.say(MEANING)


def _effect(flipped: Flipped, answers: bool) -> dict[str, str]:
    """Both flips, each beside its control."""

    sign = "+" if answers else ""

    def shown(x: Estimate) -> str:
        return f"{x.value:{sign}.3f}±{x.half:.3f}"

    cells = {}
    for name, change in (("off", flipped.off), ("on", flipped.on)):
        pair = (change.kl_div, change.control_kl)
        effect, control = (change.answer, change.control_answer) if answers else pair
        known = not math.isnan(effect.value)
        cells[name] = f"{shown(effect)}\n({shown(control)})" if known else "-"
    return cells
