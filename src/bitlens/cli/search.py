"""The command that searches codes: by a text, a row, latents or words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitlens.cli.common import CodesFolder, open_reader
from bitlens.errors import BitlensError

if TYPE_CHECKING:
    from bitlens.bits.codes import Codes
    from bitlens.bits.packed import PackedBits

SHARED = 6  # latents shown beside a context
TOKENS = 4  # and tokens beside a latent


def search(
    codes: CodesFolder,
    text: str | None = None,
    run: Path | None = None,
    whole: bool = False,
    row: int | None = None,
    on: tuple[int, ...] = (),
    off: tuple[int, ...] = (),
    words: str | None = None,
    explanations: Path | None = None,
    limit: int = 10,
    window: int = 12,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Find contexts whose bits are like a text's or have bits on and off, or latents by words.

    Similarity is the surprisal of the on-bits that two rows share, over that of the on-bits of
    either. One context a document is shown. "On" is a latent's rare state. Rows of outlying norm
    are not found.

    Args:
        text: contexts most like this text at its last token, or the one «marked»; takes --run.
        run: the autoencoder that made the codes, to encode --text.
        whole: compare all tokens of --text, with whole documents.
        row: contexts most like this row of the codes, in other documents.
        on: contexts in which all these latents are on.
        off: and all these are off.
        words: latents with all these words in their explanation or preferred tokens.
        explanations: with --words: the folder of `bitlens interpret`, or its scores.jsonl.
        limit: contexts or latents shown.
        window: tokens shown on each side.
        seed: seed of the contexts drawn with --on and --off.
    """
    from bitlens.bits.codes import Codes

    asked = {"--text": text, "--row": row, "--on or --off": on or off or None, "--words": words}
    given = [flag for flag, value in asked.items() if value is not None]
    if len(given) != 1:
        raise BitlensError(
            "Name one thing to search for: --text, --row, --on and --off, or --words"
            + (f"; not {' and '.join(given)} at once." if given else ".")
        )
    if explanations is not None and words is None:
        raise BitlensError("--explanations are searched by --words; name some.")
    if text is None and (whole or run is not None):
        raise BitlensError(f"{'--whole' if whole else '--run'} is for --text; name one.")
    if limit < 1 or window < 0:
        raise BitlensError("--limit must be at least 1, and --window at least 0.")
    corpus = Codes(codes, verify=False)  # to hash a large corpus takes longer than the search
    if words is not None:
        return _words(corpus, words, explanations, limit)
    if on or off:
        return _matching(corpus, on, off, limit, window, seed)
    if row is not None:
        return _like_row(corpus, row, limit, window)
    return _like_text(corpus, text or "", run, whole, limit, window, device)


def _like_row(codes: Codes, row: int, limit: int, window: int) -> dict[str, Any]:
    from bitlens import show
    from bitlens.features.search import rows_of

    bits = rows_of(codes, [row])
    context = _contexts(codes, [row], window)[row]
    show.say(show.plain(context))
    found = _nearest(codes, bits, limit, window, f"row {row}", int(codes.document[row]))
    return {"row": row, "context": context, **found}


def _like_text(
    codes: Codes, text: str, run: Path | None, whole: bool, limit: int, window: int, device: str
) -> dict[str, Any]:
    from bitlens.features.texts import encode_texts, row_of_mark

    if run is None:
        raise BitlensError("--text is encoded by the autoencoder of the codes; name it with --run.")
    if not text.strip():
        raise BitlensError("--text is empty; give at least one word.")
    model, autoencoder = open_reader(run, codes, device)
    plain, place = (text, 0) if whole else row_of_mark(model.tokenizer, text)
    encoded = encode_texts(model, autoencoder, [plain])
    if place >= len(encoded.bits):
        raise BitlensError(
            f"Token {place + 1:,} is beyond the {len(encoded.bits)} that are read at once; mark an "
            "earlier one, or leave out some of the text before it."
        )
    if not whole and not bool(encoded.usual[place]):
        raise BitlensError(
            "The hidden state of this token has an outlying norm, which autoencoders are not "
            "trained on: mark a later token, or put text before it."
        )
    bits = encoded.bits[encoded.usual] if whole else encoded.bits[place : place + 1]
    if not len(bits):
        raise BitlensError("No token of --text has a hidden state of usual norm; give more text.")
    at = "as a whole" if whole else f"at token {place + 1}"
    return {"text": text} | _nearest(codes, bits, limit, window, f"the text {at}")


def _nearest(
    codes: Codes, bits: PackedBits, limit: int, window: int, what: str, without: int | None = None
) -> dict[str, Any]:
    from bitlens import show
    from bitlens.features.search import nearest

    hits = nearest(codes, bits, limit, without=without)
    if not hits:
        raise BitlensError(f"No row of {codes.path} shares a bit that is on there.")
    text = _contexts(codes, [hit.row for hit in hits], window)
    lines = [
        {
            "similarity": hit.similarity,
            "document": hit.document,
            "row": hit.row,
            "context": show.plain(text[hit.row]),
            "shared latents": _some(hit.shared),
        }
        for hit in hits
    ]
    show.rows(f"{codes.path}: nearest to {what}", lines)
    show.out.print(show.SIGNS, style="dim")
    return {"hits": [{**hit._asdict(), "context": text[hit.row]} for hit in hits]}


def _some(latents: list[int]) -> str:
    more = len(latents) - SHARED
    return " ".join(map(str, latents[:SHARED])) + (f" +{more}" if more > 0 else "")


def _contexts(codes: Codes, rows: list[int], window: int) -> dict[int, str]:
    """Every row's token in its context; of rows without tokens nothing."""
    from bitlens.features.examples import contexts
    from bitlens.labels.sources import load_tokenizer

    if codes.manifest.get("model") is None or int(codes.token[rows[0]]) < 0:
        return dict.fromkeys(rows, "")
    return contexts(codes, rows, load_tokenizer(codes), window)


def _matching(
    codes: Codes, on: tuple[int, ...], off: tuple[int, ...], limit: int, window: int, seed: int
) -> dict[str, Any]:
    from bitlens import show
    from bitlens.features.search import matching

    found = matching(codes, on, off, limit, seed)
    text = _contexts(codes, found.rows, window) if found.rows else {}
    show.say(
        f"{found.found:,} of {found.of:,} rows ({100 * found.found / found.of:.3g} %); "
        f"documents: {found.documents:,}"
    )
    if found.rows:
        document = codes.document
        show.rows(
            f"{codes.path}: some of them, drawn at random",
            [
                {"document": int(document[row]), "row": row, "context": show.plain(text[row])}
                for row in found.rows
            ],
        )
        show.out.print(show.SIGNS, style="dim")
    contexts = [{"row": row, "context": text[row]} for row in found.rows]
    numbers = {"found": found.found, "of": found.of, "documents": found.documents}
    return {"on": list(on), "off": list(off), **numbers, "rows": contexts}


def _words(codes: Codes, words: str, explanations: Path | None, limit: int) -> dict[str, Any]:
    from bitlens import show
    from bitlens.features.search import rates
    from bitlens.features.words import find_latents, preferred_tokens
    from bitlens.labels.sources import load_tokenizer

    said = {} if explanations is None else read_explanations(explanations)
    if wrong := [latent for latent in said if latent >= codes.n_latents]:
        raise BitlensError(
            f"{explanations} explains latent {wrong[0]}, but {codes.path} has "
            f"{codes.n_latents} latents; name the explanations of these codes."
        )
    found = find_latents(words, said, preferred_tokens(codes, load_tokenizer(codes)), limit)
    if not found:
        more = "" if said else "; --explanations searches those of `bitlens interpret`, too"
        raise BitlensError(f"No latent has '{words}' among its preferred tokens{more}.")
    rate = rates(codes).rate
    lines = [
        {
            "latent": one.latent,
            "score": one.score,
            "on %": 100 * float(rate[one.latent]),
            "tokens": " ".join(show.token(t.text) for t in one.tokens[:TOKENS]),
            **({"explanation": show.plain(one.explanation)} if said else {}),
        }
        for one in found
    ]
    show.rows(f"{codes.path}: latents with '{words}'", lines)
    show.out.print(show.SIGNS, style="dim")
    latents = [
        one._asdict() | {"tokens": [t.text for t in one.tokens], "rate": float(rate[one.latent])}
        for one in found
    ]
    return {"words": words, "latents": latents}


def read_explanations(place: Path) -> dict[int, str]:
    """What `bitlens interpret` wrote, by latent: its folder, or the file of its scores."""
    from bitlens.explorer.evidence import SCORES, read_records, worded

    path = place / SCORES if place.is_dir() else place
    records = read_records(path, "explanations", "name what `bitlens interpret` wrote")
    return {latent: words for latent, record in records.items() if (words := worded(record))}
