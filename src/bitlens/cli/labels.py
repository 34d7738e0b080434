"""The command that scores latents against known labels."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitlens.cli.common import CodesFolder, On
from bitlens.errors import BitlensError

if TYPE_CHECKING:
    from torch import Tensor

    from bitlens.bits.codes import Codes
    from bitlens.labels.probe import ProbeScore
    from bitlens.labels.scores import LabelScore, LabelScores
    from bitlens.labels.sources import Labels


def labels(
    codes: CodesFolder,
    labels: Path | None = None,
    store: Path | None = None,
    top: int = 10,
    probes: On = True,
    seed: int = 0,
    out: Path | None = None,
) -> dict[str, Any]:
    """Score latents against known labels: token, next token, spelling, position, those of a file.

    A latent is credited with the class that it detects best on training documents, and scored on
    held-out ones (a fifth if the training held none out). Rows of outlying norm are left out.

    Args:
        labels: JSON lines (also .gz), one for each document that was harvested: {"text": ...,
            "spans": {"pos": [[start, end, "NOUN"], ...]}, "labels": {"genre": "news"}}.
        store: the hidden states behind the codes: probe these, too.
        top: latents shown for each labelling.
        probes: leave out the logistic probes on k latents, fitted on a sample of the rows.
        seed: seed of that sample.
        out: also write every latent's class and scores to this CSV file.
    """
    import torch

    from bitlens import show
    from bitlens.bits.codes import Codes
    from bitlens.hidden import ActivationStore
    from bitlens.hidden.source import held_out
    from bitlens.labels.probe import probe_sample
    from bitlens.labels.sources import load_tokenizer, own_labels, read_labels

    corpus = Codes(codes)
    hidden = ActivationStore(store) if store else None
    fraction = corpus.manifest.get("test_fraction")
    test = torch.from_numpy(held_out(corpus.document.numpy(), fraction or 0.2))
    tokenizer = load_tokenizer(corpus)
    labellings = read_labels(labels, corpus, tokenizer) if labels else []
    show.left_out(corpus.outliers)
    labellings = [x.only(corpus.usual) for x in (*labellings, *own_labels(corpus, tokenizer))]

    def probe(labelling: Labels) -> list[ProbeScore]:
        return probe_sample(corpus, labelling, test, hidden, seed) if probes else []

    scored, probed = _scored(corpus, labellings, test, probe)
    which = "held-out documents"
    if not fraction:
        which = "a fifth of the documents, which the autoencoder may know"
    _show(f"{codes}: latents against labels, on {which}", scored, probed if probes else {}, top)
    if out:
        _write_csv(out, scored)
    return {
        "codes": str(codes),
        "labellings": [
            {**scores.as_dict(), "probes": [p._asdict() for p in probed.get(scores.name, [])]}
            for scores in scored
        ],
    }


def _scored(
    codes: Codes,
    labellings: list[Labels],
    test: Tensor,
    probe: Callable[[Labels], list[ProbeScore]],
) -> tuple[list[LabelScores], dict[str, list[ProbeScore]]]:
    """The scores of every labelling that has rows enough, and its probes, by name."""
    from bitlens import show, terminal
    from bitlens.labels.scores import label_scores

    scored: list[LabelScores] = []
    probed: dict[str, list[ProbeScore]] = {}
    for labelling in labellings:
        terminal.at(0, labelling.name)
        try:
            scored.append(label_scores(codes.bits, labelling, codes.document, test))
            probed[labelling.name] = probe(labelling)
        except BitlensError as error:  # one labelling with too few rows leaves the others
            show.warn(str(error))
    if not scored:
        raise BitlensError(
            f"No labelling of {codes.path} could be scored; encode more text, or hold out more."
        )
    return scored, probed


def _show(
    title: str, scored: list[LabelScores], probed: dict[str, list[ProbeScore]], top: int
) -> None:
    from bitlens import show

    show.rows(title, [scores.summary() for scores in scored])
    for scores in scored:
        title = f"{scores.name}: the best latents, each with the class it was credited with"
        show.rows(title, [_line(score) for score in scores.by_latent()[:top]])
    aucs = [{"ROC-AUC": n, **{p.features: p.auc for p in kinds}} for n, kinds in probed.items()]
    if aucs:
        show.rows("Logistic probes on k latents: mean over the most frequent classes", aucs)


def _line(score: LabelScore) -> dict[str, Any]:
    """A score as it is shown; names with spaces around them are quoted."""
    name = score.label
    return {
        "latent": score.latent,
        "class": name if name and name == name.strip() else repr(name),
        "F1": score.f1,
        "95 % interval": f"{score.f1_low:.3f} to {score.f1_high:.3f}",
        "precision": score.precision,
        "recall": score.recall,
        "bits": score.mutual_information,
    }


def _write_csv(path: Path, scored: list[LabelScores]) -> None:
    from bitlens.files import replacing
    from bitlens.labels.scores import LabelScore

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["labelling", *LabelScore._fields])
        table.writerows([scores.name, *score] for scores in scored for score in scores.by_latent())
