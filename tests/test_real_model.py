"""A real language model, from the package that `make real` installs: harvested is what transformers
computes, and what passes through the model in its place leaves the loss as it should.
"""

from __future__ import annotations

import json
import math
import runpy
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers

from bitlens.causal.splice import Splice
from bitlens.evaluation import evaluate
from bitlens.hidden import ActivationStore, Corpus, LanguageModel
from bitlens.hidden.harvest import harvest
from bitlens.hidden.text import ContextReader
from bitlens.training import TrainConfig, train

ROOT = Path(__file__).parent.parent
PACKAGED = runpy.run_path(str(ROOT / "tools" / "packaged.py"))
MISSING = [name for name in (PACKAGED["MODEL"], PACKAGED["TEXT"]) if find_spec(name) is None]
HOOKS = {"layers.14": 15, "layers.22": 23}  # the same in transformers' list, after the embeddings
ROWS, LENGTH = 2000, 256

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"{MISSING} not installed: make .venv/real"),
]


@pytest.fixture(scope="module")
def file() -> Path:
    return PACKAGED["model"]()


@pytest.fixture(scope="module")
def stores(file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ActivationStore]:
    """Tokens of every fortieth chapter, at most LENGTH of them at a time; a third is held out."""
    folder = tmp_path_factory.mktemp("real")
    chapters = PACKAGED["chapters"]()
    assert len(chapters) == 1189
    text = folder / "text.jsonl"
    lines = (json.dumps({"text": chapter[:500]}) + "\n" for chapter in chapters[::40])
    text.write_text("".join(lines))
    model = LanguageModel.load(str(file), list(HOOKS), device="cpu")
    reader = ContextReader(Corpus((str(text),)), model.tokenizer, LENGTH, test_fraction=0.3)
    found = harvest(model, reader, folder / "stores", batch_size=1, max_rows=ROWS)
    return dict(zip(HOOKS, found, strict=True))


def test_hidden_states_of_every_row_are_transformers_own(
    file: Path, stores: dict[str, ActivationStore]
) -> None:
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()
    shards = {hook: store.shard(0) for hook, store in stores.items()}
    first = shards["layers.14"]
    assert [len(store.shards) for store in stores.values()] == [1, 1]
    checked = 0
    for index, tokens in enumerate(first["context_tokens"]):
        with torch.no_grad():
            read = tokens[tokens >= 0].long()
            own = reference(read[None], output_hidden_states=True).hidden_states
        mine = first["context"] == index
        position = first["position"][mine].long()
        assert torch.equal(first["token"][mine].long(), read[position])
        for hook, place in HOOKS.items():
            harvested, expected = shards[hook]["hidden"][mine], own[place][0, position]
            if len(read) > LENGTH / 2:  # alone in its batch
                assert torch.equal(harvested, expected)
            else:  # two together may be added up in another order
                torch.testing.assert_close(harvested, expected, rtol=1e-4, atol=1e-3)
        checked += len(position)
    assert checked == ROWS


def test_a_few_steps_of_training_and_what_is_spliced(
    file: Path, stores: dict[str, ActivationStore]
) -> None:
    store = stores["layers.14"]
    bae = train(store, TrainConfig(n_latents=256, steps=40, batch_size=256, device="cpu"))
    model = LanguageModel.load(str(file), ["layers.14"], device="cpu", causal=True)
    splice = Splice.of_store(model, None, store, limit=2)
    numbers = evaluate(bae, store, splice=splice, joint=False)
    assert numbers.fvu < 0.9
    assert numbers.ce_original is not None
    assert 1 < numbers.ce_original < 5
    assert numbers.ce_loss_score is not None
    assert math.isfinite(numbers.ce_loss_score)
    assert 0 < numbers.ce_loss_score < 1
    same = splice.losses(lambda hidden: hidden)
    assert same.ce_spliced == same.ce_original
    assert same.kl_div == 0
    assert same.ce_loss_score == 1
