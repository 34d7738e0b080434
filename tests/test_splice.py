"""Splicing reconstructions into the forward pass, against a plain computation of one context at a
time."""

import math
from types import SimpleNamespace

import pytest
import torch

from bitlens.autoencoders import BinaryAutoencoder, Transcoder
from bitlens.causal.splice import Splice, draw_contexts, load_spliced
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


MEAN = torch.linspace(-1, 1, 32)


def losses_of(model, change, ids, scored, **settings):
    return Splice(model, ids, scored, MEAN, **settings).losses(change)


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
        return (
            wrapped(kwargs.pop("hidden_states"), **kwargs) if not args else wrapped(*args, **kwargs)
        )

    module.forward = by_name
    try:
        with torch.no_grad():
            return model.model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
    finally:
        del module.forward


def plain_losses(model, change):
    """By loops -> (cross-entropy, KL from the unchanged model, share of unchanged likeliest tokens,
    tokens)"""
    ce = kl = top1 = count = 0
    for row, counts in zip(*contexts(), strict=True):
        ids = row[row >= 0]
        original = plain_log_probabilities(model, ids, lambda x: x)
        changed = plain_log_probabilities(model, ids, change)
        for t in range(1, len(ids)):
            if counts[t] and int(ids[t]) not in model.tokenizer.all_special_ids:
                ce -= float(changed[t - 1, ids[t]])
                kl += float((original[t - 1].exp() * (original[t - 1] - changed[t - 1])).sum())
                top1 += int(original[t - 1].argmax() == changed[t - 1].argmax())
                count += 1
    return ce / count, kl / count, top1 / count, count


@pytest.mark.parametrize(("kind", "hook"), CASES)
def test_every_number_equals_a_plain_computation(load, kind, hook):
    model = load(kind, hook)
    losses = losses_of(model, lossy, *contexts())
    ce, kl, top1, count = plain_losses(model, lossy)
    original, zero, mean = (
        plain_losses(model, change)[0]
        for change in (lambda x: x, torch.zeros_like, lambda x: MEAN.expand_as(x))
    )
    assert losses.tokens == count
    assert losses[:4] == pytest.approx((original, ce, zero, mean), rel=1e-4, abs=1e-6)
    assert losses.ce_loss_score == pytest.approx(
        (zero - ce) / (zero - original), rel=1e-2, abs=1e-2
    )
    assert losses.ce_loss_score_mean == pytest.approx(
        (mean - ce) / (mean - original), rel=1e-2, abs=1e-2
    )
    assert losses.kl_div == pytest.approx(kl, rel=1e-4, abs=1e-6)
    assert losses.top1 == top1
    assert kl > 1e-4, "the splice had no effect"


@pytest.mark.parametrize(("kind", "hook"), CASES)
def test_a_perfect_reconstruction_costs_nothing(load, kind, hook):
    losses = losses_of(load(kind, hook), torch.nn.Identity(), *contexts())
    assert losses.ce_spliced == losses.ce_original
    assert losses.kl_div == 0
    assert losses.top1 == losses.ce_loss_score == losses.ce_loss_score_mean == 1


def test_zeros_score_zero(load):
    losses = losses_of(load("llama"), torch.zeros_like, *contexts())
    assert losses.ce_spliced == losses.ce_zero
    assert losses.ce_loss_score == 0
    assert losses.kl_div > 0


def test_the_mean_scores_zero_against_the_mean(load):
    losses = losses_of(load("llama"), lambda x: MEAN.expand_as(x), *contexts())
    assert losses.ce_spliced == losses.ce_mean
    assert losses.ce_loss_score_mean == 0
    assert losses.ce_loss_score not in (0, 1)


@pytest.mark.parametrize("kind", PLACES)
def test_the_original_loss_is_transformers_own(load, kind):
    model = load(kind, PLACES[kind][0])
    ids, scored = contexts()
    whole = ids[3:]
    labels = whole.masked_fill(~scored[3:], -100)
    with torch.no_grad():
        expected = float(model.model(input_ids=whole, labels=labels).loss)
    assert losses_of(model, lossy, whole, scored[3:]).ce_original == pytest.approx(
        expected, rel=1e-5
    )


def test_what_the_autoencoder_makes_of_special_tokens_and_padding_does_not_matter(load):
    model = load("llama")
    ids, scored = contexts()
    special = torch.isin(ids, torch.tensor(model.tokenizer.all_special_ids)) | (ids < 0)

    def noisy(x):
        return torch.where(special[:, :, None], 1e3, lossy(x))

    assert losses_of(model, noisy, ids, scored) == losses_of(model, lossy, ids, scored)


def test_padding_changes_nothing(load):
    model = load("llama")
    ids, scored = contexts()
    padded = torch.cat([ids, torch.full((4, 5), -1)], 1)
    wider = torch.cat([scored, torch.ones(4, 5, dtype=torch.bool)], 1)
    short, long = losses_of(model, lossy, ids, scored), losses_of(model, lossy, padded, wider)
    assert long.tokens == short.tokens
    assert long == pytest.approx(short, rel=1e-4)


def test_the_size_of_a_batch_does_not_matter(load):
    model = load("llama")
    assert losses_of(model, lossy, *contexts(), max_bytes=1) == pytest.approx(
        losses_of(model, lossy, *contexts()), rel=1e-4
    )


def test_the_model_is_left_as_it_was(load):
    model = load("llama")
    ids = contexts()[0][3:]
    with torch.no_grad():
        before = model.model(input_ids=ids).logits
        losses_of(model, lossy, *contexts())
        assert torch.equal(model.model(input_ids=ids).logits, before)


def test_a_tokenizer_without_special_tokens(load):
    model = load("llama")
    model.tokenizer = SimpleNamespace(all_special_ids=[])
    ids, scored = contexts()
    losses = losses_of(model, lossy, ids, scored)
    assert losses.tokens == int((scored & (ids >= 0))[:, 1:].sum())


def test_nothing_to_score_is_refused(load):
    ids, scored = contexts()
    first = torch.zeros_like(scored)
    first[:, 0] = True  # nothing predicts the first token
    for nothing in (torch.zeros_like(scored), first):
        with pytest.raises(BitlensError, match="no token to score"):
            losses_of(load("llama"), lossy, ids, nothing)


def test_a_real_autoencoder_lies_between(load):
    model = load("llama")
    autoencoder = BinaryAutoencoder(32, 64)
    autoencoder.initialise(generator(0))
    losses = losses_of(model, autoencoder, *contexts())
    assert losses.kl_div > 0
    assert math.isfinite(losses.ce_loss_score)


@pytest.mark.slow
def test_every_token_has_its_own_numbers(load):
    model, (ids, scored) = load("llama"), contexts()
    splice = Splice(model, ids, scored, MEAN, max_bytes=1)
    identity, tokens = splice.tokens([torch.nn.Identity(), lossy])
    special = torch.isin(ids, torch.tensor(model.tokenizer.all_special_ids))
    counted = scored & (ids >= 0) & ~special & (torch.arange(12) > 0)
    assert torch.stack([tokens.context, tokens.position], 1).tolist() == counted.nonzero().tolist()
    for context, position, ce, spliced, kl, same in zip(*(t.tolist() for t in tokens), strict=True):
        row = ids[context][ids[context] >= 0]
        original = plain_log_probabilities(model, row, lambda x: x)[position - 1]
        changed = plain_log_probabilities(model, row, lossy)[position - 1]
        assert ce == pytest.approx(-float(original[row[position]]), rel=1e-4)
        assert spliced == pytest.approx(-float(changed[row[position]]), rel=1e-4)
        assert kl == pytest.approx(
            float((original.exp() * (original - changed)).sum()), rel=1e-3, abs=1e-5
        )
        assert same == (original.argmax() == changed.argmax())
    assert torch.equal(identity.ce_original, tokens.ce_original)
    assert torch.equal(identity.ce_spliced, tokens.ce_original)
    assert splice.sums(tokens).losses() == splice.losses(lossy)


def test_hidden_states_of_outlying_norm_keep_their_own(load):
    model, (ids, scored) = load("llama"), contexts()
    norms = model.hidden_states(ids[3:])["layers.1"].norm(dim=-1)
    limit = float(norms.median())

    def lossy_below(x):
        return torch.where(x.norm(dim=-1, keepdim=True) <= limit, lossy(x), x)

    by_limit = losses_of(model, lossy, ids[3:], scored[3:], max_norm=limit)
    assert by_limit.ce_spliced == losses_of(model, lossy_below, ids[3:], scored[3:]).ce_spliced
    assert by_limit.ce_spliced != losses_of(model, lossy, ids[3:], scored[3:]).ce_spliced
    rows = [x for x, _ in Splice(model, ids[3:], scored[3:], MEAN, max_norm=limit).hidden_states()]
    assert torch.equal(
        torch.cat(rows).norm(dim=1).sort().values, norms[norms <= limit].sort().values
    )


class Module(torch.nn.Module):
    """Transcodes exactly: the module of a language model itself, without its hooks."""

    transcodes = True

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.call = module.forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.call(x)


def test_a_perfect_transcoder_costs_nothing():
    model = LanguageModel.load(
        "bundled", ["layers.2.mlp:input", "layers.2.mlp"], device="cpu", causal=True
    )
    ids = torch.randint(10, 1000, (2, 24), generator=generator("transcoder"))
    scored = torch.ones_like(ids, dtype=torch.bool)
    splice = Splice(model, ids, scored, torch.linspace(-1, 1, 256))
    exact = Module(model.base.get_submodule("layers.2.mlp"))
    losses = splice.losses(exact)
    assert losses.ce_spliced == losses.ce_original
    assert losses.ce_loss_score == losses.ce_loss_score_mean == losses.top1 == 1
    other = splice.losses(Module(model.base.get_submodule("layers.3.mlp")))
    assert other.kl_div > 1e-3
    for read, written in splice.hidden_states():
        assert torch.allclose(exact(read), written, atol=1e-5)


def test_a_transcoder_is_spliced_where_it_writes(tiny_llama, tiny_store):
    transcoder = Transcoder(32, 16, k=2, d_out=32)
    transcoder.metadata = {
        "hook": {"module": "layers.1.mlp:input"},
        "target_hook": {"module": "layers.1.mlp"},
    }
    transcoder.mean_out.copy_(MEAN)
    model = load_spliced(transcoder, tiny_store, "cpu")
    assert [hook.name for hook in model.hooks] == ["layers.1.mlp:input", "layers.1.mlp"]
    splice = Splice.of_store(model, transcoder, tiny_store, 2)
    losses = splice.losses(transcoder)  # its decoder starts at zero: it predicts the mean
    assert losses.ce_spliced == losses.ce_mean
    assert losses.ce_loss_score_mean == 0
    assert load_spliced(BinaryAutoencoder(32, 16), tiny_store, "cpu").hooks[0].name == "layers.1"
    transcoder.metadata["target_hook"] = None  # as of an imported one that does not say
    with pytest.raises(BitlensError, match="does not know where it reads and writes"):
        load_spliced(transcoder, tiny_store, "cpu")


@pytest.mark.slow
def test_the_mean_of_the_store_is_ablated_to_whatever_the_autoencoder_takes_for_one(
    load, tiny_store
):
    means = (torch.zeros(32), tiny_store.mean, torch.full((32,), 7.0))
    found = []
    for mean in means:
        autoencoder = BinaryAutoencoder(32, 16)
        autoencoder.mean.copy_(mean)
        found.append(
            Splice.of_store(load("llama"), autoencoder, tiny_store, 2).losses(autoencoder).ce_mean
        )
    splice = Splice.of_store(load("llama"), None, tiny_store, 2)
    constant = splice.losses(lambda x: tiny_store.mean.expand_as(x))
    assert found == [constant.ce_mean] * 3
    assert constant.ce_spliced == pytest.approx(constant.ce_mean)


def test_a_model_with_another_number_of_hook_points_is_refused(load):
    with pytest.raises(BitlensError, match="with 2 hook points, not 1"):
        losses_of(load("llama"), Module(torch.nn.Identity()), *contexts())


def test_contexts_to_score_are_those_with_held_out_documents(tiny_store):
    store = tiny_store
    ids, scored, units = draw_contexts(store, 10_000)
    expected = []
    for rows in store.read("all"):
        test = store.is_test(rows.columns["document"])
        expected += rows.columns["token"][test].tolist()
    assert sorted(ids[scored].tolist()) == sorted(expected)
    assert 0 < len(expected) < len(store)
    assert scored.any(1).all()
    assert units.unique().tolist() == list(range(int(units.max()) + 1))
    (whole, columns), *_ = store.contexts()
    rows = {
        (int(c), int(p)): int(d)
        for c, p, d in zip(*(columns[k] for k in ("context", "position", "document")), strict=True)
    }
    places = [i for i, context in enumerate(whole) if any(torch.equal(context, row) for row in ids)]
    began = [
        rows[place, int(row.nonzero()[0, 0])] for place, row in zip(places, scored, strict=True)
    ]
    assert [began.index(d) for d in began] == [units.tolist().index(u) for u in units.tolist()]


def test_contexts_are_drawn_from_all_that_have_held_out_documents(tiny_store):
    every = draw_contexts(tiny_store, 10_000)[0].tolist()
    drawn = [
        [every.index(row) for row in draw_contexts(tiny_store, 3, seed=s)[0].tolist()]
        for s in range(20)
    ]
    assert all(places == sorted(set(places)) and len(places) == 3 for places in drawn)
    assert {place for places in drawn for place in places} == set(range(len(every)))
    assert drawn[0] == [every.index(row) for row in draw_contexts(tiny_store, 3)[0].tolist()]
    for seed in range(20):
        ids, scored, _ = draw_contexts(tiny_store, 3, seed=seed)
        held = [
            rows.columns["token"][tiny_store.is_test(rows.columns["document"])]
            for rows in tiny_store.read("all")
        ]
        assert set(ids[scored].tolist()) <= set(torch.cat(held).tolist())
    with pytest.raises(BitlensError, match="At least one context"):
        draw_contexts(tiny_store, 0)
    with pytest.raises(BitlensError, match="no context with held-out rows"):
        draw_contexts(tiny_store.split(0.0), 3)


def brute_force(numbers, units, score):
    """Value and 95 % interval of a score by leaving out one unit after another; numbers: of
    tokens"""
    value = score(numbers)
    without = [score([x[units != u] for x in numbers]) for u in range(int(units.max()) + 1)]
    n = len(without)
    error = math.sqrt((n - 1) / n * sum((w - sum(without) / n) ** 2 for w in without))
    sizes = [int((units == u).sum()) for u in range(n)]
    freedom = int(sum(sizes) ** 2 / sum(s * s for s in sizes) - 1 + 1e-9)
    half = {1: 12.7062, 2: 4.3027, 3: 3.1824}[freedom] * error
    return value, value - half, value + half


SCORE_OF = {
    "ce_loss_score": lambda x: float(1 - (x[1] - x[0]).sum() / (x[2] - x[0]).sum()),
    "ce_loss_score_mean": lambda x: float(1 - (x[1] - x[0]).sum() / (x[3] - x[0]).sum()),
    "kl_div": lambda x: float(x[4].mean()),
}


def test_intervals_are_the_jackknife_over_units(load):
    ids, scored = contexts()
    units = torch.tensor([0, 1, 1, 2])
    splice = Splice(load("llama"), ids, scored, MEAN, units=units)
    mild = lambda x: 0.9 * x  # noqa: E731
    first, second = splice.tokens([lossy, mild])
    losses, zero, mean = splice.sums(first).losses(), *splice.ablated
    own = units[first.context]

    def numbers(tokens):
        return [
            x.double() for x in (tokens.ce_original, tokens.ce_spliced, zero, mean, tokens.kl_div)
        ]

    differences = splice.sums(first).less(splice.sums(second))
    for name, score in SCORE_OF.items():
        expected = brute_force(numbers(first), own, score)
        found = [
            getattr(losses, name),
            getattr(losses, f"{name}_low"),
            getattr(losses, f"{name}_high"),
        ]
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)
        both = [*numbers(first), *numbers(second)]
        expected = brute_force(both, own, lambda x, score=score: score(x[:5]) - score(x[5:]))
        difference = differences[name]
        assert (difference.value, difference.low, difference.high) == pytest.approx(
            expected, rel=1e-6, abs=1e-9
        )
    same = splice.sums(first).less(splice.sums(first))["kl_div"]
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_one_unit_has_no_interval_and_other_contexts_no_difference(load):
    model, (ids, scored) = load("llama"), contexts()
    splice = Splice(model, ids, scored, MEAN, units=torch.zeros(4, dtype=torch.long))
    losses = splice.losses(lossy)
    assert losses.kl_div > 0
    assert losses.kl_div_low is losses.kl_div_high is losses.ce_loss_score_low is None
    fewer = Splice(model, ids[1:], scored[1:], MEAN)
    every = Splice(model, ids, scored, MEAN)
    with pytest.raises(BitlensError, match="same contexts"):
        every.sums(every.tokens([lossy])[0]).less(fewer.sums(fewer.tokens([lossy])[0]))
