"""Splicing reconstructions into the forward pass, against a plain computation one context at a time."""

import math
from types import SimpleNamespace

import pytest
import torch

from bitlens.autoencoders import BinaryAutoencoder
from bitlens.causal.splice import contexts_to_score, splice_losses
from bitlens.errors import BitlensError
from bitlens.hidden import LanguageModel
from bitlens.seeding import generator

PLACES = {
    "llama": ["layers.1", "layers.2.mlp:input", "layers.1.self_attn", "layers.0:input"],
    "gpt2": ["h.1", "h.2.attn", "h.0.mlp:input"],
}
CASES = [(kind, hook) for kind, hooks in PLACES.items() for hook in hooks]


@pytest.fixture
def load(make_model):
    return lambda kind, hook="layers.1": LanguageModel.load(
        str(make_model(kind)), [hook], device="cpu", causal=True, dtype="float32"
    )


def contexts(vocabulary: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    """Four contexts with special tokens (0, 1, 2), one of them padded, and which tokens count."""
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(6, vocabulary, (4, 12), generator=g)
    ids[0, 0] = ids[1, 5] = 0
    ids[2, 7:] = -1
    scored = torch.ones(4, 12, dtype=torch.bool)
    scored[3, :6] = False
    return ids, scored


def lossy(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x.roll(1, -1) - 0.1


def plain_log_probabilities(model, ids, change):
    """Log-probabilities of one unpadded context, with the module's own forward function wrapped."""
    (hook,) = model.hooks
    module = model.base.get_submodule(hook.path)
    usual = ~torch.isin(ids, torch.tensor(model.tokenizer.all_special_ids))
    mixed = lambda x: torch.where(usual[None, :, None], change(x), x)  # noqa: E731
    forward = module.forward

    def wrapped(first, *args, **kwargs):
        if hook.side == "input":
            return forward(mixed(first), *args, **kwargs)
        out = forward(first, *args, **kwargs)
        return (mixed(out[0]), *out[1:]) if isinstance(out, tuple) else mixed(out)

    def by_name(*args, **kwargs):
        return wrapped(kwargs.pop("hidden_states"), **kwargs) if not args else wrapped(*args, **kwargs)

    module.forward = by_name
    try:
        with torch.no_grad():
            return model.model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
    finally:
        del module.forward


def plain_losses(model, change):
    """-> (cross-entropy, KL from the unchanged model, tokens), by loops"""
    ce = kl = count = 0
    for row, counts in zip(*contexts(), strict=True):
        ids = row[row >= 0]
        original = plain_log_probabilities(model, ids, lambda x: x)
        changed = plain_log_probabilities(model, ids, change)
        for t in range(1, len(ids)):
            if counts[t] and int(ids[t]) not in model.tokenizer.all_special_ids:
                ce -= float(changed[t - 1, ids[t]])
                kl += float((original[t - 1].exp() * (original[t - 1] - changed[t - 1])).sum())
                count += 1
    return ce / count, kl / count, count


@pytest.mark.parametrize(("kind", "hook"), CASES)
def test_every_number_equals_a_plain_computation(load, kind, hook):
    model = load(kind, hook)
    losses = splice_losses(model, lossy, *contexts())
    ce, kl, count = plain_losses(model, lossy)
    original, _, _ = plain_losses(model, lambda x: x)
    zero, _, _ = plain_losses(model, torch.zeros_like)
    assert losses.tokens == count
    assert losses[:4] == pytest.approx((original, ce, zero, kl), rel=1e-4, abs=1e-6)
    assert losses.score == pytest.approx((zero - ce) / (zero - original), rel=1e-2, abs=1e-2)
    assert kl > 1e-4, "the splice had no effect"


@pytest.mark.parametrize(("kind", "hook"), CASES)
def test_a_perfect_reconstruction_costs_nothing(load, kind, hook):
    losses = splice_losses(load(kind, hook), torch.nn.Identity(), *contexts())
    assert losses.ce_spliced == losses.ce_original
    assert losses.kl_div == 0
    assert losses.score == 1


def test_zeros_score_zero(load):
    losses = splice_losses(load("llama"), torch.zeros_like, *contexts())
    assert losses.ce_spliced == losses.ce_zero
    assert losses.score == 0
    assert losses.kl_div > 0


@pytest.mark.parametrize("kind", PLACES)
def test_the_original_loss_is_transformers_own(load, kind):
    model = load(kind, PLACES[kind][0])
    ids, scored = contexts()
    whole = ids[3:]
    labels = whole.masked_fill(~scored[3:], -100)
    with torch.no_grad():
        expected = float(model.model(input_ids=whole, labels=labels).loss)
    assert splice_losses(model, lossy, whole, scored[3:]).ce_original == pytest.approx(expected, rel=1e-5)


def test_what_the_autoencoder_makes_of_special_tokens_and_padding_does_not_matter(load):
    model = load("llama")
    ids, scored = contexts()
    special = torch.isin(ids, torch.tensor(model.tokenizer.all_special_ids)) | (ids < 0)

    def noisy(x):
        return torch.where(special[:, :, None], 1e3, lossy(x))

    assert splice_losses(model, noisy, ids, scored) == splice_losses(model, lossy, ids, scored)


def test_padding_changes_nothing(load):
    model = load("llama")
    ids, scored = contexts()
    padded = torch.cat([ids, torch.full((4, 5), -1)], 1)
    wider = torch.cat([scored, torch.ones(4, 5, dtype=torch.bool)], 1)
    short, long = splice_losses(model, lossy, ids, scored), splice_losses(model, lossy, padded, wider)
    assert long.tokens == short.tokens
    assert long[:5] == pytest.approx(short[:5], rel=1e-4)


def test_the_size_of_a_batch_does_not_matter(load):
    model = load("llama")
    assert splice_losses(model, lossy, *contexts(), max_bytes=1)[:5] == pytest.approx(
        splice_losses(model, lossy, *contexts())[:5], rel=1e-4
    )


def test_the_model_is_left_as_it_was(load):
    model = load("llama")
    ids = contexts()[0][3:]
    with torch.no_grad():
        before = model.model(input_ids=ids).logits
        splice_losses(model, lossy, *contexts())
        assert torch.equal(model.model(input_ids=ids).logits, before)


def test_a_tokenizer_without_special_tokens(load):
    model = load("llama")
    model.tokenizer = SimpleNamespace(all_special_ids=[])
    ids, scored = contexts()
    losses = splice_losses(model, lossy, ids, scored)
    assert losses.tokens == int((scored & (ids >= 0))[:, 1:].sum())


def test_nothing_to_score_is_refused(load):
    ids, scored = contexts()
    first = torch.zeros_like(scored)
    first[:, 0] = True  # nothing predicts the first token
    for nothing in (torch.zeros_like(scored), first):
        with pytest.raises(BitlensError, match="no token to score"):
            splice_losses(load("llama"), lossy, ids, nothing)


def test_a_real_autoencoder_lies_between(load):
    model = load("llama")
    autoencoder = BinaryAutoencoder(32, 64)
    autoencoder.initialise(generator(0))
    losses = splice_losses(model, autoencoder, *contexts())
    assert losses.kl_div > 0
    assert math.isfinite(losses.score)


def test_contexts_to_score_are_those_with_held_out_documents(tiny_store):
    store = tiny_store
    ids, scored = contexts_to_score(store, 10_000)
    expected = []
    for rows in store.read("all"):
        test = store.is_test(rows.columns["document"])
        expected += rows.columns["token"][test].tolist()
    assert sorted(ids[scored].tolist()) == sorted(expected)
    assert 0 < len(expected) < len(store)
    assert scored.any(1).all()
    fewer, _ = contexts_to_score(store, 2)
    assert torch.equal(fewer, ids[:2])
