"""What a person sees of an object in a notebook: a line that says what it is, and a DataFrame of
numbers."""

import math
import re
import runpy
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

import bitlens as bl
from bitlens.causal.faithfulness import by_position
from bitlens.causal.splice import load_spliced
from bitlens.errors import BitlensError
from bitlens.evaluation import Evaluation
from bitlens.features.profiles import profiles
from bitlens.features.token_scores import token_scores
from bitlens.hidden import LanguageModel
from bitlens.hidden.harvest import harvest
from bitlens.labels.sources import own_labels
from bitlens.results import brief, numbers_of, to_pandas

LATENTS = 70
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def things(harvested, tiny_llama, text_folder, tmp_path_factory) -> dict[str, Any]:
    """One of everything that the library gives."""
    language_model = LanguageModel.load(str(tiny_llama), ["layers.1"], device="cpu")
    reader = bl.ContextReader(
        bl.Corpus((str(text_folder),)), language_model.tokenizer, 32, test_fraction=0.5
    )
    (store,) = harvest(language_model, reader, tmp_path_factory.mktemp("half") / "store")
    bae = bl.BinaryAutoencoder(store.d_in, LATENTS)
    bae.mean.copy_(store.mean)
    bae.scale.fill_(store.scale)
    bae.metadata["hook"] = store.manifest["hook"]
    codes = bl.encode_store(bae, store, tmp_path_factory.mktemp("codes") / "codes")
    model = load_spliced(bae, store, "cpu")
    splice = bl.Splice.of_store(model, bae, store, 4)
    test = store.is_test(codes.document)
    kept = bl.faithfulness(bae, store, splice, (1, None))
    first = next(own for own in own_labels(codes, model.tokenizer) if own.name == "spelling")
    return {
        "store": store,
        "paired": bl.PairedStore(harvested, harvested),
        "rows": next(store.read("test")),
        "codes": codes,
        "bits": codes.bits,
        "tensors": bl.TensorSource(torch.randn(30, 4)),
        "bae": bae,
        "model": model,
        "splice": splice,
        "topk": bl.TopKAutoencoder(8, 16, k=3),
        "corpus": bl.Corpus(("a",)),
        "config": bl.TrainConfig(),
        "reader": bl.ContextReader(bl.Corpus(("a",)), model.tokenizer, 32),
        "evaluation": bl.evaluate(bae, store),
        "entropy": bl.entropy(codes.bits, codes.document),
        "kept": kept[-1],
        "tokens": kept[-1].tokens,
        "positions": by_position(kept[-1].tokens)["1"],
        "matching": bl.match(codes.bits, codes.bits),
        "labels": first,
        "scores": bl.label_scores(codes.bits, first, codes.document, test),
        "profile": profiles(codes, tokenizer=model.tokenizer)[0],
        "token score": token_scores(codes.bits, codes.token, test)[0],
    }


@pytest.mark.slow
def test_an_object_says_what_it_is_in_a_line(things):
    for name, thing in things.items():
        said = repr(thing)
        assert said.startswith(type(thing).__name__), name
        assert "\n" not in said, name
        assert len(said) < 900, name
        assert not re.search(r"object at 0x|tensor\(|array\(|\d\.\d{8}", said), said


def test_a_line_names_what_tells_one_from_another(things):
    store, rows = things["store"], len(things["store"])
    assert repr(things["bits"]) == f"PackedBits({rows:,} rows of {LATENTS} bits)"
    assert repr(things["codes"]).endswith(
        f"codes: {rows:,} rows of 70 bits, {store.manifest['model']} at layers.1)"
    )
    assert (
        repr(things["bae"])
        == "BinaryAutoencoder(d_in=32, n_latents=70, coding='step', hook='layers.1')"
    )
    assert repr(things["topk"]) == "TopKAutoencoder(d_in=8, n_latents=16, k=3)"
    assert repr(things["tensors"]) == "TensorSource(30 rows of 4)"
    assert repr(things["model"]).endswith(" read at layers.1, torch.float32 on cpu)")
    assert "4 contexts of 32" in repr(things["splice"])
    assert f"hidden=float32[{len(things['rows'].hidden)}, 32]" in repr(things["rows"])
    assert "f1=Interval(value=float32[70, " in repr(things["scores"])


def test_numbers_come_as_data_frames(things):
    pytest.importorskip("pandas")
    evaluation, kept, tokens = things["evaluation"], things["kept"], things["tokens"]
    assert to_pandas(evaluation).iloc[0].dropna().to_dict() == {
        k: v for k, v in evaluation.as_dict().items() if v is not None
    }
    both = to_pandas({"one": evaluation, "two": evaluation})
    assert list(both.index) == ["one", "two"]
    assert both.fvu.tolist() == [evaluation.fvu] * 2
    entropy = to_pandas(things["entropy"])
    assert entropy.bits_tree_high[0] == things["entropy"].bits_tree.high
    assert to_pandas([kept, kept]).kl_div.tolist() == [kept.losses.kl_div] * 2
    assert "tokens_position" not in to_pandas(kept)
    frame = to_pandas(tokens)
    assert len(frame) == len(tokens.position) > 1
    assert frame.ce_spliced.tolist() == tokens.ce_spliced.tolist()
    matching = to_pandas(things["matching"])
    assert len(matching) == LATENTS
    assert matching.category.tolist() == things["matching"].category
    scores = things["scores"].by_latent()
    assert to_pandas(things["scores"]).f1.tolist() == [score.f1 for score in scores]
    assert to_pandas([things["profile"]]).rate[0] == things["profile"].rate
    assert to_pandas(things["scores"].summary()).classes[0] == len(things["scores"].classes)
    assert len(to_pandas([])) == 0


def test_what_is_no_result_is_refused_and_pandas_is_not_required(monkeypatch):
    pytest.importorskip("pandas")
    for wrong in (3, [3, 4], "text"):
        with pytest.raises(BitlensError, match=r"A (int|str) is no result"):
            to_pandas(wrong)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(BitlensError, match="pip install pandas"):
        to_pandas({})


def test_long_lists_are_counted():
    class Result:
        _fields = ("a", "b", "c")

        def _asdict(self) -> dict[str, Any]:
            return {"a": list(range(1000)), "b": math.pi, "c": {"x": "y" * 100}}

    assert brief(Result()) == "Result(a=1,000 in a list, b=3.142, c={'x': '" + "y" * 59 + "…'})"


def test_every_number_is_described_and_listed_in_the_docs() -> None:
    """`python tools/list_numbers.py docs/numbers.md` makes the list."""
    listed = runpy.run_path(str(ROOT / "tools" / "list_numbers.py"))["listed"]()
    assert listed in (ROOT / "docs" / "numbers.md").read_text(encoding="utf-8")
    names = {field.name for field in fields(Evaluation)} - {"architecture", "about"}
    ends = {name for name in names if name.endswith(("_low", "_high"))}
    assert set(numbers_of(Evaluation)) == names - ends
    assert {end.rpartition("_")[0] for end in ends} <= names
