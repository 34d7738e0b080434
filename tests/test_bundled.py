"""The language model and the corpus that are installed with bitlens."""

import re

import pytest
import torch
from safetensors import safe_open

from bitlens.hidden import Corpus, LanguageModel
from bitlens.hidden.named import bundled_folder
from bitlens.options import BUNDLED


def test_model_is_small_and_half_precision() -> None:
    weights = bundled_folder() / "model.safetensors"
    assert sum(file.stat().st_size for file in bundled_folder().iterdir()) <= 12_000_000
    with safe_open(weights, framework="pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
    assert {tensor.dtype for tensor in tensors} == {torch.float16}
    assert 3_000_000 <= sum(tensor.numel() for tensor in tensors) <= 6_000_000


@pytest.mark.slow
def test_corpus_is_small_and_long_enough() -> None:
    (size,) = {file.stat().st_size for file in bundled_folder().parent.glob("corpus.jsonl.gz")}
    assert size <= 2_000_000
    model = LanguageModel.load(BUNDLED, ["layers.0"])
    texts = [text for _, text in Corpus((BUNDLED,)).documents()]
    tokens = sum(map(len, model.tokenizer(texts, add_special_tokens=False)["input_ids"]))
    assert tokens >= 300_000
    assert len(set(texts)) == len(texts)


@pytest.mark.slow
def test_model_predicts_its_own_text_far_better_than_chance() -> None:
    model = LanguageModel.load(BUNDLED, ["layers.0"], causal=True)
    texts = [text for _, text in Corpus((BUNDLED,)).documents()][:16]
    losses = []
    for text in texts:
        ids = torch.tensor([model.tokenizer(text)["input_ids"][:256]], device=model.device)
        losses.append(float(model.model(ids, labels=ids).loss))
    assert sum(losses) / len(losses) < 4  # nats a token; chance is ln 4096 = 8.3


def test_card_states_licence_provenance_and_perplexity() -> None:
    card = (bundled_folder().parent / "README.md").read_text(encoding="utf-8")
    assert re.search(r"perplexity[^|]*\|[^|]*\d", card)
    assert "MIT" in card
    assert "public domain" in card
