"""What the page asks for, as JSON: the same for the live server and for a static copy."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from bitlens.explorer.evidence import Explanations
from bitlens.explorer.keeping import Record
from bitlens.explorer.subject import Subject

DIGITS = 5
FLAGS = "dense: on in over 10 % of the rows; dead: in under .01 %; stuck: off in under .01 %"
EFFECT = "KL divergence of the next token without it, nats: its 95 % interval's lower end"
COLUMNS: tuple[tuple[str, str, str, str, str], ...] = (
    ("latent", "latent", "number of the latent", "number", "d"),
    ("rate", "on", "share of the rows in which it is on", "number", ".2%"),
    ("tokens", "tokens", "tokens that it is on at more often than at others", "text", ""),
    ("f1", "F1", "how well a set of tokens predicts it, in other documents", "number", ".3f"),
    ("explanation", "explanation", "what a language model or labels say it is on for", "text", ""),
    ("score", "score", "balanced accuracy of the explanation; chance is .5", "number", ".3f"),
    ("effect", "effect", EFFECT, "number", ".4f"),
    ("again", "again", "rate in the 16 rows after it is on, over the rate", "number", ".1f"),
    ("dispersion", "dispersion", "how unevenly its rows lie in documents", "number", ".1f"),
    ("burstiness", "burstiness", "log2(1 - rate), as in arXiv 2509.20997", "number", ".4f"),
    ("flags", "", FLAGS, "flag", ""),
)
COUNTED = ("rate", "again", "dispersion", "burstiness")  # of these, as they are in the records


def rounded(value: Any) -> Any:
    """The same with floats of a few digits, as JSON has them."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return value


class LatentAnswers:
    """The table and the pages of one run's latents."""

    def __init__(
        self,
        subject: Subject,
        explanations: Explanations | None = None,
        effects: dict[int, Record] | None = None,
    ) -> None:
        self.subject, self.explanations, self.effects = subject, explanations, effects or {}

    def table(self) -> Record:
        """A column for each thing that one sorts or searches by."""
        subject, explained = self.subject, self.explanations
        latents = range(subject.n_latents)
        data: dict[str, list[Any]] = {
            "latent": list(latents),
            **{name: [record[name] for record in subject.records] for name in COUNTED},
            "tokens": [subject.tokens_of(i) for i in latents],
            "f1": [record["token_f1"] for record in subject.records],
            "explanation": [explained.words(i) if explained else "" for i in latents],
            "score": [explained.score(i) if explained else None for i in latents],
            "effect": [(self.effects.get(i) or {}).get("kl_div_low") for i in latents],
            "flags": [subject.flags(i) for i in latents],
        }
        names = ("key", "label", "meaning", "kind", "format")
        columns = [dict(zip(names, column, strict=True)) for column in COLUMNS]
        return {"columns": columns, "data": rounded(data)}

    def latent(self, latent: int) -> Record:
        """All that is known of one."""
        subject, record = self.subject, self.subject.record(latent)

        def named(near: list[Record]) -> list[Record]:
            return [one | {"tokens": subject.tokens_of(one["latent"])} for one in near]

        def kept(tokens: list[Record], *names: str) -> list[Record]:
            return [{name: token[name] for name in names} for token in tokens]

        preference = ("text", "count", "share", "lift")
        answer = {
            **{k: record[k] for k in (*COUNTED, "latent", "bits", "surprisal", "positions")},
            **{k: record[k] for k in ("token_f1", "token_set", "flipped")},
            "flags": subject.flags(latent),
            "explanation": self.explanations.of(latent) if self.explanations else None,
            "preferred": kept(record["tokens"], *preference),
            "next": kept(record["next_tokens"], *preference),
            "promotes": kept(record["promotes"], "text", "logit"),
            "suppresses": kept(record["suppresses"], "text", "logit"),
            "effect": self.effects.get(latent),
            "tree": named([{"latent": i} for i in record["tree"]]),
            "similar": named(record["similar"]),
            "together": named(record["together"]),
            "python": self._python(latent),
        }
        on = partial(subject.on, latent)
        examples = [subject.context(row, on) for row in record["rows"]]
        return rounded(answer) | {"examples": examples if subject.has_tokens else []}

    def _python(self, latent: int) -> str:
        """What gives the same in Python."""
        subject = self.subject
        run, codes = str(subject.run), str(subject.codes.path)
        value = 0 if subject.flipped[latent] else 1
        lines = [
            "from bitlens.autoencoders import Autoencoder",
            "from bitlens.bits.codes import Codes",
            "from bitlens.features.examples import random_examples",
            "from bitlens.labels.sources import load_tokenizer",
            "",
            f"autoencoder = Autoencoder.from_pretrained({run!r})",
            f"codes = Codes({codes!r})",
            f"direction = autoencoder.W_dec[{latent}]",
            f"on = codes.bits.column({latent}) == {value}",
        ]
        if subject.has_texts:
            lines.append(f"random_examples(codes, {latent}, load_tokenizer(codes))")
        return "\n".join(lines)
