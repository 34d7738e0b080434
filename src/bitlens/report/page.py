"""The page: what is known of a run, drawn and put into one file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitlens import markup
from bitlens.autoencoders.binary import NEGLIGIBLE
from bitlens.autoencoders.formats.registry import folder_of
from bitlens.bits.codes import Codes
from bitlens.bits.statistics import DENSE
from bitlens.errors import BitlensError
from bitlens.evaluation import Evaluation
from bitlens.files import replacing
from bitlens.remote import place
from bitlens.report import charts, contents
from bitlens.report.kept import keep_evaluation, keep_latents, kept_evaluation, kept_latents
from bitlens.results import listed, shown

REPORT = "report.html"
FIRST = ("fvu", "l0", "bits_joint", "ce_loss_score", "live")  # numbers at the head of the page
BITS = ("bits_marginal", "bits_tree", "bits_joint", "bits_gaussian")
BOUND = "bits_gaussian"
BITS_MEANING = "bits a row of this code, beside the bound of a Gaussian source"
ODD = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)


def write_report(
    run: Path | str,
    *,
    evaluation: Evaluation | None = None,
    codes: Codes | None = None,
    tokenizer: Any = None,
    called: str | None = None,
) -> Path:
    """Write `report.html` into the folder of a run, from what is there -> its path.

    evaluation, codes: of this run; their numbers and clearest latents are kept in the folder
    (`evaluation.json`, `latents.json`), so that they are in later reports, too. tokenizer: of the
    codes' model; by default it is loaded. called: the run's name for others; by default its path.
    Curves, numbers or latents that are not known are left out.
    """
    run = folder_of(run)
    config, finished = contents.configuration(run)
    if codes is not None:
        codes.require_run(run, config.get("d_sae"))
    if evaluation is not None:
        keep_evaluation(run, evaluation)
    if codes is not None:
        keep_latents(run, codes, tokenizer)
    page = _page(run, config, finished, place(called or run))
    with replacing(run / REPORT) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
    return run / REPORT


def _page(run: Path, config: Mapping[str, Any], finished: bool, called: Path) -> str:
    notes = [] if finished else ["The training has not ended: this is what there is of it so far."]
    parts: dict[str, Any] = {}
    for name, part in PARTS.items():
        try:
            parts[name] = part(run, config)
        except BitlensError as error:
            notes.append(f"Left out: {error}")
        except ODD:
            notes.append(f"Left out: the {name}, as a file in the folder is damaged.")
    sheets = markup.PALETTE, markup.TEMPLATES / "report.css"
    style = "".join(sheet.read_text(encoding="utf-8") for sheet in sheets)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return markup.render(
        "report.html",
        style=style,
        digest=digest,
        icon=base64.b64encode(markup.ICON.read_bytes()).decode(),
        name=called.resolve().name,
        heading=contents.heading(config),
        notes=notes,
        commands=contents.commands(called, config, (parts.get("latents") or {}).get("codes")),
        **{name: parts.get(name) for name in PARTS},
    )


def _curves(run: Path, config: Mapping[str, Any]) -> list[charts.Chart]:
    """Of every term of the loss that is not always zero, and of what is counted beside them."""
    columns = contents.curves(run)
    steps, drawn = columns.pop("step", []), []
    for name, values in columns.items():
        known = [(x, y) for x, y in zip(steps, values, strict=True) if None not in (x, y)]
        same = name == "total" and values == columns.get("mse")
        if len(known) > 1 and any(y for _, y in known) and not same:
            drawn.append(charts.line(name, contents.MEANINGS[name], *zip(*known, strict=True)))
    return drawn


def _numbers(run: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    record = kept_evaluation(run)
    if record is None:
        return None
    values = record["numbers"]
    lines = listed(Evaluation, values)
    where, special = contents.measured_on(record, config)
    floats = values.get("bits_magnitudes")  # of a sparse autoencoder, a part of what its codes cost
    bits: dict[str, tuple[float, str]] = {}
    for name in filter(values.get, BITS):
        if floats and name != BOUND:
            total = values[name] + floats
            bits[f"{name} + bits_magnitudes"] = (total, f"{total:.1f}")
        else:
            bits[name] = (values[name], shown(name, values, ".1f"))
    rates = record["rates"]
    return {
        "lines": lines,
        "first": [line for name in FIRST for line in lines if line.name == name],
        "where": where,
        "special": special,
        "bits": charts.bars("Entropy", BITS_MEANING, bits, BOUND) if len(bits) > 1 else None,
        "bound": _against_the_bound(values),
        "rates": charts.histogram(rates["edges"], rates["counts"], DENSE, NEGLIGIBLE),
    }


def _against_the_bound(values: Mapping[str, Any]) -> str:
    """The share of the bound that the code takes; empty where one of them is not known."""
    joint, bound = values.get("bits_joint"), values.get(BOUND)
    if joint is None or not bound:
        return ""
    return f"{(joint + (values.get('bits_magnitudes') or 0)) / bound * 100:.0f} %"


def _latents(run: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    record = kept_latents(run)
    if record is None:
        return None
    cards = [
        {
            "name": f"Latent {latent['latent']:d}",
            "facts": [f"on in {100 * latent['rate']:.3g} % of rows", f"F1 {latent['f1']:.2f}"],
            "tokens": [str(text) for text in latent["tokens"]],
            "more": int(latent["more"]),
            "lines": [],
            "examples": [str(text) for text in latent["examples"]],
        }
        for latent in record["latents"]
    ]
    return {"cards": cards, "codes": record["codes"], "rows": f"{record['measured']:,d}"}


def _made(run: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    files = sorted(file for file in run.iterdir() if file.is_file() and file.name != REPORT)
    return {
        "groups": contents.made(config),
        "settings": contents.settings(config),
        "files": [(file.name, size(file.stat().st_size)) for file in files],
    }


PARTS = {"curves": _curves, "numbers": _numbers, "latents": _latents, "made": _made}


def size(n: int) -> str:
    """Bytes, as people read them."""
    if n < 2**20:
        return f"{n:,d} bytes" if n < 1024 else f"{n / 2**10:,.1f} KiB"
    return f"{n / 2**20:,.1f} MiB"
