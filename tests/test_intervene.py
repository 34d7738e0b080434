"""Latents that are held while a language model runs, against changes made by hand."""

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitlens.autoencoders import BinaryAutoencoder, TopKAutoencoder, Transcoder
from bitlens.bits import descent as search
from bitlens.bits.packed import PackedBits
from bitlens.causal.intervene import (
    change_codes,
    intervene,
    keep_only,
    steering_vector,
    swap,
    sweep,
)
from bitlens.errors import BitlensError
from bitlens.hidden import Corpus, LanguageModel
from bitlens.hidden.harvest import harvest
from bitlens.hidden.hooks import attach
from bitlens.hidden.text import ContextReader
from bitlens.seeding import generator

HOOK, LATENTS = "layers.2", 48
TEXTS = ["Call me Ishmael. Some years ago", "It was the best of times, it was the worst", "She"]
BOS, PAD = 0, 2


@pytest.fixture(scope="module")
def model():
    return LanguageModel.load("bundled", [HOOK], device="cpu", causal=True)


def states_of(model):
    tokens, mask = batch(model)
    return model.hidden_states(tokens, mask)[HOOK][mask.bool() & (tokens != BOS)]


def made(kind: str, states: torch.Tensor):
    """An untrained autoencoder whose latents, directions that occur, are on in some rows."""
    g, d = generator("autoencoder", kind), states.shape[1]
    if kind == "topk":
        autoencoder = TopKAutoencoder(d, LATENTS, k=8)
    else:
        autoencoder = BinaryAutoencoder(d, LATENTS, coding=kind)
    autoencoder.initialise(g)
    autoencoder.mean.copy_(states.mean(0))
    autoencoder.scale.copy_(states.std())
    rows = (states - states.mean(0)) / states.std()
    mixed = torch.randn(LATENTS, len(rows), generator=g) @ rows
    mixed = mixed / mixed.norm(dim=1, keepdim=True)
    autoencoder.W_dec.data = mixed * torch.linspace(6, 10, LATENTS)[:, None]
    if kind == "descent":
        autoencoder.price.fill_(2.0)
    else:
        autoencoder.W_enc.data = autoencoder.W_dec.data.T / 8
    return autoencoder.eval()


@pytest.fixture(scope="module", params=["step", "descent", "topk"])
def autoencoder(request, model):
    return made(request.param, states_of(model))


def batch(model, side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    """Three texts of unequal length, each after <|bos|>."""
    model.tokenizer.padding_side = side
    ids = [[BOS, *model.tokenizer(text, add_special_tokens=False)["input_ids"]] for text in TEXTS]
    padded = model.tokenizer.pad({"input_ids": ids}, return_tensors="pt")
    return padded["input_ids"], padded["attention_mask"]


@torch.no_grad()
def logits(model, tokens, mask=None):
    return model.model(**model.inputs(tokens, mask)).logits


@torch.no_grad()
def by_hand(model, autoencoder, ids, new, positions=None):
    """Logits of one text without padding, in which the codes of some rows become `new(codes)`."""

    def changed(x):
        x = x.clone()
        for place in range(x.shape[1]) if positions is None else positions:
            if int(ids[place]) in model.tokenizer.all_special_ids:
                continue
            codes = autoencoder.encode(x[0, place][None])[0]
            difference = new(codes.clone()) - codes
            for latent in difference.nonzero()[:, 0].tolist():
                x[0, place] += difference[latent] * steering_vector(autoencoder, latent)
        return x

    with attach(model.base, model.hooks[-1], changed):
        return logits(model, ids[None])[0]


def setting(holds):
    def new(codes):
        for latent, value in holds.items():
            codes[latent] = value
        return codes

    return new


def holds_of(autoencoder):
    value = 1 if autoencoder.binary else 2.5
    return {3: value, 7: 0, 11: value}


@pytest.mark.slow
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("positions", [None, [1], [-1], [2, -2]])
def test_held_latents_equal_decoder_rows_added_by_hand(model, autoencoder, side, positions):
    tokens, mask = batch(model, side)
    holds = holds_of(autoencoder)
    with intervene(model, autoencoder, holds, positions) as held:
        found = logits(model, tokens, mask)
    assert 0 < held.changed <= held.rows
    moved = False
    for row, real, ids in zip(found, mask.bool(), tokens, strict=True):
        ids = ids[real]
        places = None
        if positions is not None:
            places = {p % len(ids) for p in positions if -len(ids) <= p < len(ids)}
        expected = by_hand(model, autoencoder, ids, setting(holds), places)
        torch.testing.assert_close(row[real], expected, rtol=1e-3, atol=2e-3)
        moved |= not torch.allclose(expected, logits(model, ids[None])[0], atol=1e-2)
    assert moved


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_mask_has_the_columns_of_the_input(model, autoencoder, side):
    tokens, mask = batch(model, side)
    marked = torch.zeros_like(mask, dtype=torch.bool)
    last = [int(row.nonzero()[-1, 0]) for row in mask]
    marked[range(3), last] = True
    marked[:, -1] = True  # of the shorter texts padding, on the right
    holds = holds_of(autoencoder)
    with intervene(model, autoencoder, holds, marked):
        by_mask = logits(model, tokens, mask)
    with intervene(model, autoencoder, holds, [-1]):
        by_index = logits(model, tokens, mask)
    assert torch.equal(by_mask[mask.bool()], by_index[mask.bool()])
    with intervene(model, autoencoder, holds, marked[2, :5]):  # shorter than the text: no more
        assert logits(model, tokens, mask).isfinite().all()


def test_nothing_held_changes_not_a_bit(model, autoencoder):
    for side in ("left", "right"):
        tokens, mask = batch(model, side)
        before = logits(model, tokens, mask)
        others = {"others": "searched"} if autoencoder.architecture == "bae" else {}
        others = others if getattr(autoencoder, "coding", "") == "descent" else {}
        with intervene(model, autoencoder, {}, **others) as held:
            assert torch.equal(logits(model, tokens, mask), before)
        assert held.changed == 0
        with change_codes(model, autoencoder, lambda rows: rows.codes) as held:
            assert torch.equal(logits(model, tokens, mask), before)
        assert held.rows == int(mask.sum()) - 3  # all but <|bos|>
        assert torch.equal(logits(model, tokens, mask), before)


def test_rows_as_they_are_held_stay_as_they_are(model):
    autoencoder = made("descent", states_of(model))
    tokens, mask = batch(model)
    codes = autoencoder.encode(model.hidden_states(tokens, mask)[HOOK])
    latent = int(codes[0, 1:6].sum(0).argmax())
    places = codes[0, :, latent].nonzero()[:, 0].tolist()
    assert places
    before = logits(model, tokens[:1], mask[:1])
    for others in ("kept", "searched"):
        with intervene(model, autoencoder, {latent: 1}, places, others) as held:
            assert torch.equal(logits(model, tokens[:1], mask[:1]), before)
        assert held.changed == 0


def test_every_sequence_may_hold_others(model, autoencoder):
    tokens, mask = batch(model, "left")
    value = 1 if autoencoder.binary else 1.5
    each = [{3: value}, {}, {5: 0, 8: value}]
    with intervene(model, autoencoder, each):
        together = logits(model, tokens, mask)
    for row, holds in enumerate(each):
        with intervene(model, autoencoder, holds):
            alone = logits(model, tokens, mask)
        assert torch.equal(together[row], alone[row])
    with intervene(model, autoencoder, each[:2]), pytest.raises(BitlensError, match="2 sequences"):
        logits(model, tokens, mask)


# --- generate -------------------------------------------------------------------------------------


def generated(model, tokens, mask, **options):
    options = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": PAD} | options
    return model.model.generate(tokens, attention_mask=mask, **options)


@pytest.mark.slow
@pytest.mark.parametrize("positions", [None, [-1], [2], "mask"])
def test_generating_with_a_cache_equals_generating_without(model, autoencoder, positions):
    tokens, mask = batch(model, "left")
    if positions == "mask":
        positions = torch.zeros_like(mask, dtype=torch.bool)
        positions[:, -3:] = True
    holds = dict.fromkeys(range(0, 40, 2), 1 if autoencoder.binary else 6.0)
    found = []
    for cached in (True, False):
        with intervene(model, autoencoder, holds, positions) as held:
            found.append(generated(model, tokens, mask, use_cache=cached))
        assert held.changed
    assert torch.equal(*found)
    assert not torch.equal(found[0], generated(model, tokens, mask))


@pytest.mark.slow
def test_generating_with_nothing_held_equals_generating(model, autoencoder):
    tokens, mask = batch(model, "left")
    for options in ({}, {"use_cache": False}, {"num_beams": 2}):
        before = generated(model, tokens, mask, **options)
        with intervene(model, autoencoder, {}):
            assert torch.equal(generated(model, tokens, mask, **options), before)
        assert "generate" not in vars(model.model)


def test_what_is_generated_is_held_step_by_step(model, autoencoder):
    """Greedy decoding by hand, without a cache, each token after a full pass."""
    tokens, mask = batch(model, "left")
    ids = tokens[0][mask[0].bool()]
    holds = dict.fromkeys(range(0, 40, 2), 1 if autoencoder.binary else 6.0)
    with intervene(model, autoencoder, holds):
        found = generated(model, ids[None], torch.ones_like(ids[None]), max_new_tokens=5)[0]
    for _ in range(5):
        last = by_hand(model, autoencoder, ids, setting(holds))[-1]
        ids = torch.cat([ids, last.argmax()[None]])
    assert found.tolist() == ids[: len(found)].tolist()


def test_beams_keep_the_holds_of_their_sequence(model):
    autoencoder = made("step", states_of(model))
    tokens, mask = batch(model, "left")
    each = [dict.fromkeys(range(0, 40, 2), 1), {}, {}]
    with intervene(model, autoencoder, each):
        found = generated(model, tokens, mask, num_beams=3)
    before = generated(model, tokens, mask, num_beams=3)
    assert not torch.equal(found[0], before[0])
    assert torch.equal(found[1:, : before.shape[1]], before[1:, : found.shape[1]])


# --- other bits -----------------------------------------------------------------------------------


def energy(x, W, b, price, h):
    return float((x - h @ W - b).square().sum() + (price * h).sum())


def tiny(m: int, seed: int) -> BinaryAutoencoder:
    g = generator("tiny", seed)
    autoencoder = BinaryAutoencoder(6, m, coding="descent")
    autoencoder.W_dec.data = torch.randn(m, 6, generator=g)
    autoencoder.b_dec.data = 0.1 * torch.randn(6, generator=g)
    autoencoder.price.copy_(torch.rand(m, generator=g) * 0.3)
    autoencoder.mean.copy_(torch.randn(6, generator=g))
    autoencoder.scale.fill_(1.7)
    return autoencoder


@pytest.mark.slow
@pytest.mark.parametrize("path", ["gram", "no gram", "torch", "torch, no gram", "flips"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), m=st.integers(2, 8), data=st.data())
def test_the_search_around_held_bits_against_brute_force(path, seed, m, data):
    """No flip and no exchange of other bits lowers the energy, and the others are found as in a
    dictionary without the held latents, of what is left when those are taken out."""
    autoencoder = tiny(m, seed)
    held = torch.full((m,), math.nan)
    for latent in data.draw(st.sets(st.integers(0, m - 1), min_size=1)):
        held[latent] = data.draw(st.integers(0, 1))
    if path == "flips":
        autoencoder = autoencoder.coded(flips=100)
    rows = torch.randn(16, 6, generator=generator("rows", seed)) * 3
    with pytest.MonkeyPatch.context() as patch:
        if "no gram" in path:
            patch.setattr(search, "GRAM_BYTES", 0)
        if "torch" in path:
            patch.setattr(search, "descent_cpu", search.descent_cuda)
        found = autoencoder.encode_held(rows, held)
    x = autoencoder.standardise(rows)
    W, b, price = autoencoder.W_dec.data, autoencoder.b_dec.data, autoencoder.price
    is_held = ~held.isnan()
    allowed = [
        h
        for h in map(torch.tensor, itertools.product([0.0, 1.0], repeat=m))
        if bool((h[is_held] == held[is_held]).all())
    ]
    left = x - (held == 1).float() @ W
    if not is_held.all():
        start = _encoders(autoencoder, rows, is_held)
        smaller = search.descend(left, W[~is_held], b, price[~is_held], start=start)
        assert torch.equal(found[:, ~is_held], smaller.unpack())
    for row, bits in zip(x, found, strict=True):
        assert torch.equal(bits[is_held], held[is_held])
        assert set(bits.tolist()) <= {0.0, 1.0}
        own = energy(row, W, b, price, bits)
        energies = [(energy(row, W, b, price, h), h) for h in allowed]
        near = [e for e, h in energies if _one_flip_or_exchange(h, bits)]
        assert not near or own <= min(near) + 1e-3


def _encoders(autoencoder, rows, is_held):
    """Where a descent with a limit of flips begins"""
    if autoencoder.flips is None:
        return None
    z = autoencoder.pre_activations(autoencoder.standardise(rows))
    return PackedBits.pack(z[:, ~is_held] > 0)


def _one_flip_or_exchange(h, bits):
    change = h - bits
    count = int(change.abs().sum())
    return count == 1 or (count == 2 and float(change.sum()) == 0)


def test_nothing_held_is_the_usual_search():
    autoencoder = tiny(8, 0)
    rows = torch.randn(64, 6, generator=generator("rows")) * 3
    free = autoencoder.encode_held(rows, torch.full((8,), math.nan))
    assert torch.equal(free, autoencoder.encode(rows))


def test_others_are_kept_or_searched(model):
    autoencoder = made("descent", states_of(model))
    tokens, mask = batch(model)
    ids = tokens[0][mask[0].bool()]
    x = model.hidden_states(ids[None])[HOOK][0]
    codes = autoencoder.encode(x)
    latent = int(codes[1:].sum(0).argmax())
    place = int(codes[1:, latent].nonzero()[0, 0]) + 1
    seen = {}
    for others in ("kept", "searched"):
        with intervene(model, autoencoder, {latent: 0}, [place], others) as held:
            seen[others] = model.hidden_states(ids[None])[HOOK][0]
        assert held.changed == 1
        rest = torch.arange(len(ids)) != place
        assert torch.equal(seen[others][rest], x[rest])
    without = seen["kept"][place] - x[place]
    assert torch.allclose(without, -steering_vector(autoencoder, latent), atol=1e-3)
    values = torch.full((LATENTS,), math.nan)
    values[latent] = 0
    new = autoencoder.encode_held(x[place][None], values)[0]
    assert not torch.equal(new, codes[place] * (torch.arange(LATENTS) != latent))
    expected = (new - codes[place]) @ autoencoder.W_dec.data * autoencoder.scale
    assert torch.allclose(seen["searched"][place] - x[place], expected, atol=1e-3)
    # the others answer: what is left changes the state less
    assert (seen["searched"] - x).norm() < (seen["kept"] - x).norm()


def test_positions_are_whole_numbers_or_a_mask(model):
    autoencoder, (tokens, mask) = made("step", states_of(model)), batch(model, "left")
    marked = [[column == tokens.shape[1] - 1 for column in range(tokens.shape[1])]] * 3
    with intervene(model, autoencoder, {3: 1}, torch.tensor(marked)):
        expected = logits(model, tokens, mask)
    for same in (marked, np.array(marked), marked[0], [-1], np.array([-1])):
        with intervene(model, autoencoder, {3: 1}, same):  # type: ignore[arg-type]
            assert torch.equal(logits(model, tokens, mask), expected)
    for wrong in ([1.5], torch.tensor([[1, 2], [3, 4]])):
        with pytest.raises(BitlensError, match="Positions are whole numbers"):
            intervene(model, autoencoder, {3: 1}, wrong)  # type: ignore[arg-type]
    with pytest.raises(BitlensError, match="to hold nothing"):
        intervene(model, autoencoder, [])
    for text, holds in (("a", []), (torch.zeros(0, dtype=torch.long), [{}])):
        with pytest.raises(BitlensError, match="A sweep needs"):
            sweep(model, autoencoder, text, holds)
    with (
        intervene(model, autoencoder, {3: 1}, [-1]),
        pytest.raises(BitlensError, match="read at once"),
    ):
        generated(model, tokens, mask, prefill_chunk_size=4)


@pytest.mark.slow
def test_several_answers_and_guesses_are_held_as_one_by_one(model):
    autoencoder = made("step", states_of(model))
    tokens, mask = batch(model, "left")
    each = [dict.fromkeys(range(0, 40, 2), 1), {}, {}]
    with intervene(model, autoencoder, each):
        found = generated(model, tokens, mask, num_return_sequences=2, num_beams=4)
    free = generated(model, tokens, mask, num_return_sequences=2, num_beams=4)
    assert not torch.equal(found[:2], free[:2])
    assert torch.equal(found[2:, : free.shape[1]], free[2:, : found.shape[1]])
    one = tokens[:1, mask[0].bool()]
    for positions in (None, [-1], [2]):
        with intervene(model, autoencoder, each[0], positions):  # several tokens a pass
            plain = generated(model, one, torch.ones_like(one))
            guessed = generated(model, one, torch.ones_like(one), prompt_lookup_num_tokens=3)
        assert torch.equal(guessed, plain)


@pytest.mark.parametrize("kind", ["step", "topk"])
def test_only_a_descent_searches_others(model, kind):
    with pytest.raises(BitlensError, match="let the others be kept"):
        intervene(model, made(kind, states_of(model)), {0: 1}, others="searched")


# --- swap, ablation, sweep, steering --------------------------------------------------------------


def test_swapped_codes_are_those_of_the_other_text(model, autoencoder):
    tokens, mask = batch(model)
    one, other = (row[real.bool()] for row, real in zip(tokens[:2], mask[:2], strict=True))
    theirs = autoencoder.encode(model.hidden_states(other[None])[HOOK][0])
    with swap(model, autoencoder, other, [2, -1], [4, 3]):
        found = logits(model, one[None])[0]
    codes = {2: theirs[4], len(one) - 1: theirs[3]}

    def changed(x):
        x = x.clone()
        mine = autoencoder.encode(x[0])
        for place, new in codes.items():
            x[0, place] += (new - mine[place]) @ autoencoder.W_dec.data * autoencoder.scale
        return x

    with attach(model.base, model.hooks[0], changed):
        expected = logits(model, one[None])[0]
    assert torch.allclose(found, expected, atol=1e-3)
    with swap(model, autoencoder, one, list(range(len(one)))):
        same = logits(model, one[None])
    assert torch.equal(same, logits(model, one[None]))
    with pytest.raises(BitlensError, match="as many, not of 1"):
        swap(model, autoencoder, other, [2, 3], [4])
    with pytest.raises(BitlensError, match="no position 99"):
        swap(model, autoencoder, "a text", [2], [99])


def test_all_latents_are_off_but_those_that_are_kept(model, autoencoder):
    tokens, mask = batch(model)
    ids = tokens[1][mask[1].bool()]

    def only_these(codes):
        kept = torch.zeros_like(codes)
        kept[[1, 4]] = codes[[1, 4]]
        return kept

    norms = autoencoder.W_dec.data.norm(dim=1)

    def largest(codes):
        order = (codes * norms).argsort(descending=True)
        codes[order[3:]] = 0
        return codes

    for keep, new in (([1, 4], only_these), (3, largest)):
        with keep_only(model, autoencoder, keep):
            found = logits(model, ids[None])[0]
        expected = by_hand(model, autoencoder, ids, new)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=5e-3)
    with keep_only(model, autoencoder, LATENTS):
        same = logits(model, ids[None])
    assert torch.equal(same, logits(model, ids[None]))


def test_a_sweep_is_one_intervention_after_another(model, autoencoder):
    value = 1 if autoencoder.binary else 3.0
    holds = [{}, {3: 0}, {3: value}, *({latent: value} for latent in range(6))]
    found = sweep(model, autoencoder, TEXTS[0], holds, [-1], batch_size=4)
    ids = torch.tensor([model.tokenizer(TEXTS[0])["input_ids"]])
    assert found.shape == (9, 4096)
    for row, each in zip(found, holds, strict=True):
        with intervene(model, autoencoder, each, [-1]):
            expected = logits(model, ids)[0, -1].log_softmax(-1)
        assert torch.allclose(row, expected, atol=1e-3)


def test_a_steering_vector_is_what_going_from_0_to_1_adds(model, autoencoder):
    codes = torch.zeros(2, LATENTS)
    codes[1, 5] = 1
    off, on = autoencoder.decode(codes)
    assert torch.allclose(steering_vector(autoencoder, 5), on - off, atol=1e-4)
    assert not steering_vector(autoencoder, 5).requires_grad


# --- what stays untouched -------------------------------------------------------------------------


def test_special_tokens_and_outlying_norms_stay(model, autoencoder):
    tokens, mask = batch(model)
    before = model.hidden_states(tokens, mask)[HOOK]
    norms = before.norm(dim=-1)
    limit = float(norms[mask.bool()].median())
    with keep_only(model, autoencoder, 0, max_norm=limit) as held:
        after = model.hidden_states(tokens, mask)[HOOK]
    usual = (norms <= limit) & mask.bool() & (tokens != BOS)
    assert torch.equal(after[~usual], before[~usual])
    some_on = autoencoder.encode(before[usual]).any(1)
    assert some_on.any()
    assert torch.equal((after[usual] != before[usual]).any(1), some_on)
    assert held.rows == int(usual.sum())
    autoencoder.metadata = {"outlier_norm": limit}
    with keep_only(model, autoencoder, 0):
        assert torch.equal(model.hidden_states(tokens, mask)[HOOK], after)
    autoencoder.metadata = {}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_model_of_half_precision(dtype, model):
    half = LanguageModel.load("bundled", [HOOK], device="cpu", causal=True, dtype=dtype)
    autoencoder = made("step", states_of(model))
    tokens, mask = batch(half)
    before = half.hidden_states(tokens, mask)[HOOK]
    with intervene(half, autoencoder, {3: 1}, [2]):
        after = half.hidden_states(tokens, mask)[HOOK]
        assert logits(half, tokens, mask).dtype == before.dtype
    assert after.dtype == before.dtype == getattr(torch, dtype)
    place = torch.zeros_like(mask, dtype=torch.bool)
    place[:2, 2] = True
    assert torch.equal(after[~place], before[~place])
    off = autoencoder.encode(before[place])[:, 3] == 0
    assert off.any()
    vector = steering_vector(autoencoder, 3) * off[:, None]
    assert torch.equal(after[place], (before[place].float() + vector).to(before.dtype))


@pytest.mark.slow
def test_a_transcoder_is_held_where_it_reads_and_changes_where_it_writes():
    names = ["layers.2.mlp:input", "layers.2.mlp"]
    model = LanguageModel.load("bundled", names, device="cpu", causal=True)
    g = generator("transcoder")
    transcoder = Transcoder(256, 32, k=4, d_out=256)
    transcoder.initialise(g)
    transcoder.W_dec.data = torch.randn(32, 256, generator=g)
    transcoder.scale_out.fill_(1.5)
    tokens, mask = batch(model, "left")
    before = model.hidden_states(tokens, mask)
    with intervene(model, transcoder, {3: 2.0}, [-1]):
        after = model.hidden_states(tokens, mask)
        cached = generated(model, tokens, mask)
    read, written = names
    assert torch.equal(after[read], before[read])
    assert torch.equal(after[written][:, :-1], before[written][:, :-1])
    codes = transcoder.encode(before[read][:, -1])
    added = (2.0 - codes[:, 3, None]) * transcoder.W_dec.data[3] * 1.5
    assert torch.allclose(after[written][:, -1], before[written][:, -1] + added, atol=1e-4)
    assert torch.allclose(steering_vector(transcoder, 3), transcoder.W_dec.data[3] * 1.5)
    with intervene(model, transcoder, {3: 2.0}, [-1]):
        assert torch.equal(generated(model, tokens, mask, use_cache=False), cached)
    with pytest.raises(BitlensError, match="1 hook point"):
        intervene(model, made("step", before[read][0]), {3: 1})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "qwen3"])
def test_models_of_other_families(kind, make_model):
    hook = {"gpt2": "h.1", "gpt_neox": "layers.1", "qwen3": "layers.1"}[kind]
    model = LanguageModel.load(
        str(make_model(kind)), [hook], device="cpu", causal=True, dtype="float32"
    )
    tokens = torch.randint(6, 300, (3, 10), generator=generator(kind))
    mask = torch.ones_like(tokens)
    mask[0, :4] = mask[1, :2] = 0
    autoencoder = BinaryAutoencoder(32, 16)
    autoencoder.initialise(generator(kind))
    autoencoder.W_dec.data.mul_(20)
    for holds, positions in (({}, None), ({3: 1, 4: 0}, None), ({3: 1, 4: 0, 5: 1}, [-1])):
        found = []
        for cached in (True, False):
            with intervene(model, autoencoder, holds, positions):
                found.append(generated(model, tokens, mask, use_cache=cached))
        assert torch.equal(*found)
        assert torch.equal(found[0], generated(model, tokens, mask)) == (not holds)


def test_bad_input_is_refused(model):
    autoencoder, sparse = (made(kind, states_of(model)) for kind in ("step", "topk"))
    for holds, message in (
        ({LATENTS: 1}, f"no latent {LATENTS}"),
        ({0: 2}, "is a bit: it is held at 0 or 1"),
    ):
        with pytest.raises(BitlensError, match=message):
            intervene(model, autoencoder, holds)
    with pytest.raises(BitlensError, match="cannot be held at -1"):
        intervene(model, sparse, {0: -1})
    with pytest.raises(BitlensError, match="cannot be held at nan"):
        intervene(model, sparse, {0: math.nan})
    with pytest.raises(BitlensError, match="not 'some'"):
        intervene(model, autoencoder, {0: 1}, others="some")  # type: ignore[arg-type]
    with pytest.raises(BitlensError, match="no latent 99"):
        keep_only(model, autoencoder, [99])
    tokens, mask = batch(model)
    with (
        intervene(model, autoencoder, {0: 1}, [-99]),
        pytest.raises(BitlensError, match="no position -99"),
    ):
        logits(model, tokens, mask)


@pytest.mark.slow
def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    """docs/interventions.md, on an untrained run of as many latents."""
    reading = LanguageModel.load("bundled", [HOOK], device="cpu")
    reader = ContextReader(Corpus(("bundled",)), reading.tokenizer, 64, test_fraction=0.3)
    harvest(reading, reader, tmp_path / "store", max_rows=3000)
    autoencoder = BinaryAutoencoder(256, 700)
    autoencoder.initialise(generator("page"))
    autoencoder.scale.fill_(6.0)
    autoencoder.save(tmp_path / "run")
    page = (Path(__file__).parent.parent / "docs" / "interventions.md").read_text(encoding="utf-8")
    first, second = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(first + second, names)
    assert names["log_probs"].shape == (3, 4096)
    assert names["held"].rows == 2  # the prompt's last token, in each of two passes
    assert [effect.latent for effect in names["found"]] == [0, 57, 635]
