"""Flips in documents and their controls, against the model run by hand."""

import math

import numpy as np
import pytest
import torch

from bitlens.autoencoders import Autoencoder, TopKAutoencoder
from bitlens.bits import Codes
from bitlens.causal.flips import Question, Reader, _change, _controls, _pair, flip
from bitlens.causal.intervene import intervene
from bitlens.errors import BitlensError
from bitlens.features.search import Rates, rates
from bitlens.hidden import LanguageModel

QUESTION = Question(" and then", (" he", " she"))


@pytest.fixture(scope="module")
def opened(codes_folder) -> tuple[LanguageModel, Autoencoder, Rates]:
    model = LanguageModel.load("bundled", ["layers.2"], causal=True)
    autoencoder = Autoencoder.from_pretrained(codes_folder.parent / "run")
    return model, autoencoder, rates(Codes(codes_folder))


@pytest.fixture(scope="module")
def documents(codes_folder) -> list[list[int]]:
    codes = Codes(codes_folder)
    return [codes.token[codes.document == i].tolist()[:30] for i in range(6)]


@pytest.mark.slow
@pytest.mark.parametrize("question", [QUESTION, Question()])
def test_effects_are_what_a_pass_by_hand_gives(opened, documents, question) -> None:
    model, autoencoder, known = opened
    reader = Reader(model, autoencoder, question, known)
    document = documents[0]
    on = reader.on(document)
    latent = int(on.sum(0).argmax())
    mask = torch.zeros(2, len(document), dtype=torch.bool)
    mask[0] = True
    holds = [reader.holds([latent], on=False), {}]
    kl_div, answer = reader.effects(document, holds, mask)
    assert kl_div[1] == 0  # nothing held, nothing changed
    ids = torch.tensor([reader.tokens(document)])
    text = model.tokenizer.decode(ids[0].tolist())
    assert text.endswith(question.prompt)
    first, last = len(reader.before), ids.shape[1] - len(reader.prompt)
    with torch.inference_mode():
        usual = model.model(input_ids=ids).logits[0].double().log_softmax(-1)
        with intervene(model, autoencoder, holds[0], list(range(first, last))):
            held = model.model(input_ids=ids).logits[0].double().log_softmax(-1)
    each = (usual.exp() * (usual - held)).sum(-1)
    expected = each[-1] if question.prompt else each[first:].mean()
    assert kl_div[0] == pytest.approx(float(expected), rel=1e-3, abs=1e-6)
    if not question.answers:
        assert np.isnan(answer).all()
        return
    he, she = (
        model.tokenizer(a, add_special_tokens=False)["input_ids"][0] for a in (" he", " she")
    )
    odds = (held[-1, he] - held[-1, she]) - (usual[-1, he] - usual[-1, she])
    assert answer[0] == pytest.approx(float(odds), abs=1e-4)
    assert answer[1] == 0


@pytest.mark.slow
def test_latents_are_flipped_where_they_can_be(opened, documents) -> None:
    model, autoencoder, known = opened
    reader = Reader(model, autoencoder, QUESTION, known)
    on = torch.stack([reader.on(document).any(0) for document in documents])
    latents = on[:3].float().sum(0).topk(2).indices.tolist()
    flipped = flip(reader, documents[:3], documents[3:], latents, [0.1, 0.5])
    assert [one.latents for one in flipped] == [[latents[0]], [latents[1]], latents]
    for one in flipped:
        assert one.on.documents == 3
        assert one.off.documents == int(on[:3][:, one.latents].any(1).sum())
        assert one.on.kl_div.value > 0
        assert math.isfinite(one.on.control_answer.value)
    again = flip(reader, documents[:3], documents[3:], latents, [0.1, 0.5])
    assert again == flipped
    never = int((~on.any(0)).nonzero()[0, 0])
    (nothing,) = flip(reader, documents[:3], documents[3:], [never], [0.0])
    assert nothing.off.documents == 0
    assert math.isnan(nothing.off.kl_div.value)
    assert nothing.on.documents == 3


def test_controls_are_others_of_like_rate() -> None:
    rate = np.where(np.arange(60) % 2 == 0, np.geomspace(0.001, 0.4, 60), 0)
    random = np.random.default_rng(0)
    for _ in range(50):
        drawn = _controls(rate, [20, 30], [20, 30, 22], random)
        assert len(set(drawn)) == 2
        assert not set(drawn) & {20, 30, 22}
        assert all(rate[latent] > 0 for latent in drawn)
        assert all(abs(a - b) <= 14 for a, b in zip(drawn, [20, 30], strict=True))
    alike = {_controls(np.full(60, 0.1), [20], [20], random)[0] for _ in range(300)}
    assert len(alike) > 50  # of as many as there are, no matter which number they have
    assert _controls(np.where(np.arange(60) == 20, 0.1, 0), [20], [20], random) == []


def test_a_latent_held_off_is_beside_one_on_at_as_many_tokens(
    opened, documents, monkeypatch
) -> None:
    model, autoencoder, known = opened
    reader = Reader(model, autoencoder, QUESTION, known)
    asked = []
    effects = Reader.effects

    def noted(self, document, holds, masks):
        asked.append((document, holds, masks))
        return effects(self, document, holds, masks)

    monkeypatch.setattr(Reader, "effects", noted)
    on = torch.stack([reader.on(document).float().mean(0) for document in documents])
    latent = int((on[:3] - on[3:].mean(0)).mean(0).argmax())
    flip(reader, documents[:3], documents[3:], [latent], [0.2])
    off = [(d, holds) for d, holds, masks in asked if masks.all()]
    assert off
    for document, (own, control) in off:
        (other,) = control
        counts = reader.on(document).sum(0)
        likeness = (counts.double().log() - counts[latent].log()).abs()
        likeness[latent] = torch.inf
        assert counts[other] > 0
        assert likeness[other] <= likeness.sort().values[9]
        assert set(own) == {latent}


def test_tokens_that_no_intervention_changes_have_no_latent_on(opened, documents) -> None:
    """Their hidden states are of outlying norm: what is on there cannot be held off."""
    model, autoencoder, known = opened
    reader = Reader(model, autoencoder, QUESTION, known)
    ids = torch.tensor([reader.tokens(documents[0])])
    own = slice(len(reader.before), len(reader.before) + len(documents[0]))
    norms = model.hidden_states(ids)["layers.2"][0][own].float().norm(dim=1)
    before = autoencoder.metadata["outlier_norm"]
    limit = float(norms.median())
    try:
        autoencoder.metadata["outlier_norm"] = limit
        on = reader.on(documents[0])
    finally:
        autoencoder.metadata["outlier_norm"] = before
    assert not on[norms > limit * 1.001].any()
    assert on[norms < limit * 0.999].any(1).all()


def test_without_a_control_there_is_none() -> None:
    effects = np.arange(8.0).reshape(2, 4)
    holds = [{1: 0, 2: 0}, {3: 0}, {1: 0}, {4: 0}]
    assert np.isnan(_pair(effects, holds, 0)[:, 1]).all()
    change = _change([_pair(effects, holds, 0), _pair(effects, holds, 1)])
    assert change.documents == 2
    assert change.kl_div.value == 1.0
    assert change.control_kl.value == 3.0


def test_what_cannot_be_asked_is_refused(opened) -> None:
    model, autoencoder, known = opened
    for question, sentence in (
        (Question("", (" he", " he")), "begin with different tokens"),
        (Question("", ("",)), "An answer is empty"),
        (Question(" word" * 300), "The prompt fills"),
    ):
        with pytest.raises(BitlensError, match=sentence):
            Reader(model, autoencoder, question, known)
    sparse = TopKAutoencoder(autoencoder.d_in, autoencoder.n_latents, k=2)
    with pytest.raises(BitlensError, match="Only bits can be flipped"):
        Reader(model, sparse, QUESTION, known)
