"""Commands that read codes."""

from __future__ import annotations

from bitlens.cli.common import CodesFolder, Json, write_result


def entropy(codes: CodesFolder, seed: int = 0, json: Json = None) -> None:
    """Measure the information in a corpus of codes: estimates, bounds, and their intervals.

    Code lengths are those of some documents, coded by models fitted on the others: the documents that were held out when
    the autoencoder was trained on this store, or the last fifth if none were.

    Args:
        codes: folder of codes, from `bitlens encode`.
        seed: seed of the bootstrap and of the autoregression.
        json: also write the numbers to this file.
    """
    from dataclasses import asdict

    import torch

    from bitlens import show
    from bitlens.bits.codes import Codes
    from bitlens.hidden.source import held_out
    from bitlens.information.entropy import entropy as measure

    corpus = Codes(codes)
    fraction = corpus.manifest.get("test_fraction") or 0.0
    test = torch.from_numpy(held_out(corpus.document.numpy(), fraction)) if fraction else None
    result = measure(corpus.bits, corpus.document, test, seed=seed, report=lambda stage: show.err.print(f"{stage} ..."))
    show.entropy(str(codes), result)
    write_result(json, {"codes": str(codes), **asdict(result)})
