"""Which latents are kept, against brute force, and what splicing them costs, against the splice
itself."""

import json
import math

import pytest
import torch

from bitlens.autoencoders import BinaryAutoencoder, TopKAutoencoder
from bitlens.causal.faithfulness import (
    by_position,
    faithfulness,
    keep_largest,
    keep_surprising,
    record,
    worst,
    write_tokens,
)
from bitlens.causal.splice import Splice, SpliceTokens, load_spliced
from bitlens.cli.faithfulness import faithfulness as command
from bitlens.errors import BitlensError
from bitlens.hidden import ActivationStore, LanguageModel
from bitlens.hidden.positions import position_ranges
from bitlens.seeding import generator

D, LATENTS = 32, 24


@pytest.fixture(scope="module")
def model(tiny_llama) -> LanguageModel:
    return LanguageModel.load(str(tiny_llama), ["layers.1"], device="cpu", causal=True)


def build(kind: str, store: ActivationStore):
    autoencoder = (
        BinaryAutoencoder(D, LATENTS) if kind == "bae" else TopKAutoencoder(D, LATENTS, k=6)
    )
    autoencoder.initialise(generator(1))
    autoencoder.mean.copy_(store.mean)
    autoencoder.scale.fill_(store.scale)
    autoencoder.metadata = {"hook": store.manifest["hook"]}
    return autoencoder.eval()


def some_codes() -> torch.Tensor:
    """Signed magnitudes, about half of them zero; one row all zero, one without zeros."""
    g = generator("codes")
    codes = torch.randn(40, 9, generator=g) * (torch.rand(40, 9, generator=g) < 0.5)
    codes[0], codes[1] = 0, torch.arange(1, 10)
    return codes


@pytest.mark.parametrize("k", [0, 1, 3, 20])
def test_the_most_surprising_are_kept(k):
    codes, rates = some_codes(), torch.tensor([0.3, 0.1, 0.1, 0.5, 0.02, 0.9, 0.1, 0.3, 0.0])
    kept = keep_surprising(codes.reshape(4, 10, 9), rates, k).reshape(40, 9)
    for row, found in zip(codes.tolist(), kept.tolist(), strict=True):
        on = sorted((j for j in range(9) if row[j]), key=lambda j: (float(rates[j]), j))[:k]
        assert found == [row[j] if j in on else 0 for j in range(9)]


@pytest.mark.parametrize("k", [0, 1, 3, 20])
def test_the_largest_are_kept(k):
    codes, norms = some_codes(), torch.linspace(0.2, 3, 9)
    for row, found in zip(codes.tolist(), keep_largest(codes, norms, k).tolist(), strict=True):
        on = sorted((j for j in range(9) if row[j]), key=lambda j: -abs(row[j]) * float(norms[j]))[
            :k
        ]
        assert found == [row[j] if j in on else 0 for j in range(9)]


def test_without_a_limit_codes_stay_as_they_are():
    codes = some_codes()
    assert torch.equal(keep_surprising(codes, torch.rand(9), None), codes)
    assert torch.equal(keep_largest(codes, torch.rand(9), None), codes)


@pytest.mark.parametrize("by", ["surprisal", "magnitude"])
@pytest.mark.parametrize("kind", ["bae", "topk"])
def test_the_whole_code_is_the_plain_splice(tiny_store, model, kind, by):
    autoencoder = build(kind, tiny_store)
    splice = Splice.of_store(model, autoencoder, tiny_store, 3)
    every, nearly = faithfulness(autoencoder, tiny_store, splice, [None, LATENTS], by=by)
    assert every.losses == splice.losses(autoencoder)
    assert nearly.losses == every.losses
    assert nearly[1:4] == every[1:4]


@pytest.mark.parametrize("kind", ["bae", "topk"])
def test_nothing_kept_is_every_latent_in_its_common_state(tiny_store, model, kind):
    autoencoder = build(kind, tiny_store)
    splice = Splice.of_store(model, autoencoder, tiny_store, 3)
    (none,) = faithfulness(autoencoder, tiny_store, splice, [0])
    off = torch.zeros(LATENTS)
    if kind == "bae":
        rows = torch.cat([rows.hidden for rows in tiny_store.read("train")])
        off = (autoencoder.encode(rows).mean(0) > 0.5).float()
        assert 0 < off.sum() < LATENTS, "the test needs latents of both polarities"
    assert none.losses == splice.losses(
        lambda x: autoencoder.decode(off.expand(*x.shape[:-1], LATENTS))
    )
    assert (none.l0, none.surprisal) == (0, 0)


@pytest.mark.parametrize("k", [2, None])
@pytest.mark.parametrize("kind", ["bae", "topk"])
def test_what_is_left_of_the_hidden_states_equals_a_loop_over_rows(tiny_store, model, kind, k):
    autoencoder = build(kind, tiny_store)
    splice = Splice.of_store(model, autoencoder, tiny_store, 3)
    (kept,) = faithfulness(autoencoder, tiny_store, splice, [k])
    train = torch.cat([rows.hidden for rows in tiny_store.read("train")])
    x = torch.cat([x for x, _ in splice.hidden_states()])
    with torch.no_grad():
        rates = (autoencoder.encode(train) != 0).double().sum(0).add(0.5) / (len(train) + 1)
        codes = autoencoder.encode(x)
        common = (rates > 0.5).float() if kind == "bae" else torch.zeros(LATENTS)
        rare = torch.where(common > 0, 1 - rates, rates)
        left, bits, on = torch.empty_like(codes), 0.0, 0
        for i, row in enumerate(codes):
            chosen = sorted((rare[j].item(), j) for j in range(LATENTS) if row[j] != common[j])[:k]
            left[i] = common
            for p, j in chosen:
                left[i, j] = row[j]
                bits, on = bits - math.log2(p), on + 1
        x_hat = autoencoder.decode(left).double()
    expected = float((x_hat - x).square().sum() / (x.double() - x.double().mean(0)).square().sum())
    assert kept.fvu == pytest.approx(expected, rel=1e-5)
    assert kept.l0 == pytest.approx(on / len(x), rel=1e-9)
    assert kept.surprisal == pytest.approx(bits / len(x), rel=1e-6)


def test_a_negative_number_to_keep_is_refused(tiny_store, model):
    autoencoder = build("bae", tiny_store)
    splice = Splice.of_store(model, autoencoder, tiny_store, 1)
    with pytest.raises(BitlensError, match="must not be negative, as -3 is"):
        faithfulness(autoencoder, tiny_store, splice, [4, -3])


def some_tokens() -> SpliceTokens:
    """Positions 1 to 8, one token each; the cross-entropy rises by 2, 0, 3, -1, 0, 0, 5 and 1."""
    rise = torch.tensor([2.0, 0, 3, -1, 0, 0, 5, 1])
    ce = torch.arange(1.0, 9)
    same = rise <= 0
    return SpliceTokens(
        torch.zeros(8, dtype=torch.long), torch.arange(1, 9), ce, ce + rise, rise.abs(), same
    )


def test_means_by_position():
    lines = by_position(some_tokens())
    assert list(lines) == ["1", "2-3", "4-7", "8-15"]
    assert [line.tokens for line in lines.values()] == [1, 2, 4, 1]
    assert lines["2-3"] == (2, 2.5, 4.0, 1.5, 0.5)
    assert lines["4-7"] == (4, 5.5, 6.5, 1.5, 0.75)


def test_positions_lie_in_ranges_that_double():
    names, which = position_ranges(torch.tensor([9, 0, 3, 4, 7, 16, 1]))
    assert [names[i] for i in which] == ["8-15", "0", "3", "4-7", "4-7", "16-31", "1"]
    assert names == ["0", "1", "3", "4-7", "8-15", "16-31"]
    assert position_ranges(torch.tensor([3, 2, 1, 0]), singles=2)[0] == ["0", "1", "2-3"]


def test_worst_tokens_lose_most():
    assert worst(some_tokens(), 3) == [6, 2, 0]
    assert len(worst(some_tokens(), 100)) == 8


def test_tokens_are_written_with_their_text(tiny_store, model, tmp_path):
    autoencoder = build("bae", tiny_store)
    splice = Splice.of_store(model, autoencoder, tiny_store, 2)
    (tokens,) = splice.tokens([autoencoder])
    write_tokens(tmp_path / "new" / "tokens.jsonl", splice, tokens)
    lines = [
        json.loads(line) for line in (tmp_path / "new" / "tokens.jsonl").read_text().splitlines()
    ]
    assert lines == [record(splice, tokens, i) for i in range(len(tokens.position))]
    for line in lines:
        ids = splice.contexts[line["context"]]
        here = line["position"]
        assert line["token"] == model.tokenizer.decode(ids[here])
        assert line["before"] == model.tokenizer.decode(ids[max(0, here - 8) : here])
        assert line["after"] == model.tokenizer.decode(
            [i for i in ids[here + 1 : here + 9].tolist() if i >= 0]
        )
    assert [line["ce_spliced"] for line in lines] == tokens.ce_spliced.tolist()


def test_the_command_prints_both_tables_and_the_worst_tokens(tiny_store, tmp_path, capsys):
    build("bae", tiny_store).save(tmp_path / "run")
    out = tmp_path / "tokens.jsonl"
    told = command(
        tmp_path / "run", tiny_store.path, keep=(0, 4), contexts=2, out=out, device="cpu"
    )
    shown = capsys.readouterr().out
    assert [line["k"] for line in told["keep"]] == [0, 4, None]
    assert told["keep"][0]["fvu"] > told["keep"][2]["fvu"]
    for name in ("fvu", "surprisal", "top1"):
        assert f"{name} " in shown
    assert f"{told['keep'][1]['ce_spliced']:.3f}" in shown
    assert list(told["positions"])[:3] == ["1", "2-3", "4-7"]
    assert sum(line["tokens"] for line in told["positions"].values()) == told["keep"][2]["tokens"]
    assert len(out.read_text().splitlines()) == told["keep"][2]["tokens"]
    assert shown.count("«") == 10


def test_the_command_compares_autoencoders_on_the_same_contexts(
    tiny_store, tmp_path, capsys, model
):
    for name in ("bae", "topk"):
        build(name, tiny_store).save(tmp_path / name)
    how = {"keep": (1,), "contexts": 10, "device": "cpu"}
    told = command(
        tmp_path / "bae",
        tiny_store.path,
        against=(tmp_path / "topk", tmp_path / "bae"),
        seed=1,
        **how,
    )
    splice = Splice.of_store(model, build("bae", tiny_store), tiny_store, 10, seed=1)
    ours, theirs = (splice.losses(build(name, tiny_store)) for name in ("bae", "topk"))
    difference = told["less"][str(tmp_path / "topk")]["kl_div"]
    assert difference["value"] == pytest.approx(ours.kl_div - theirs.kl_div, abs=1e-7)
    assert difference["low"] < difference["value"] < difference["high"]
    assert told["less"][str(tmp_path / "bae")]["kl_div"] == {"value": 0, "low": 0, "high": 0}
    shown = capsys.readouterr().out
    assert "less another" in shown
    line = told["keep"][1]
    assert f"{line['kl_div']:.3f} ± {(line['kl_div_high'] - line['kl_div_low']) / 2:.3f}" in shown
    assert "kl_div_low" not in shown


def test_a_store_without_text_is_refused(tiny_store):
    tiny_store.manifest = {**tiny_store.manifest, "context_length": None}
    with pytest.raises(BitlensError, match="imported without its text"):
        load_spliced(build("bae", tiny_store), tiny_store)
