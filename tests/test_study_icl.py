"""The study of in-context learning: prompts, the states that are read, and a whole small run."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch
from pyarrow.parquet import read_table
from torch.nn.functional import one_hot

from bitlens.bits.packed import PackedBits
from bitlens.errors import BitlensError
from bitlens.files import write_tensors
from bitlens.hidden import LanguageModel
from bitlens.information.dependence import label_entropy
from bitlens.information.intervals import student_quantile
from bitlens.labels.probe import label_information
from bitlens.studies.cells import Study
from bitlens.studies.icl.config import IclConfig
from bitlens.studies.icl.effects import combined, contrasts, effects
from bitlens.studies.icl.pooling import PooledSource, centred, fitting_states
from bitlens.studies.icl.prompts import (
    Template,
    draw_prompts,
    permuted_labels,
    read_examples,
    sentences,
    word_salad,
    write_prompts,
)
from bitlens.studies.icl.reading import answers, longest_example, read_prompts
from bitlens.studies.icl.report import sentences_of, summary
from bitlens.studies.icl.study import run

PATTERN = "{text}\nAnswer: {label}\n\n"
THINGS = ("river", "lamp", "garden", "letter", "horse", "winter", "fox", "window", "song", "child")
KINDS = {"good": ["fine", "merry", "sweet", "bright"], "bad": ["sad", "bitter", "cruel", "dull"]}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 short texts of two labels, three quarters good: their adjectives tell which."""
    rows = []
    for n in range(240):
        label = "bad" if n % 4 == 3 else "good"
        adjective, thing, other = KINDS[label][n // 4 % 4], THINGS[n % 10], THINGS[n // 10 % 10]
        rows.append({"text": f"a {adjective} {thing} and {other} number {n}", "label": label})
    path = tmp_path_factory.mktemp("labelled") / "things.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    return path


def test_every_prompt_has_demonstrations_of_its_own(labelled):
    labels = read_examples(str(labelled)).labels
    drawn = draw_prompts(labels, 100, 4, balanced=False, seed=0)
    assert len(drawn.queries.unique()) == 100
    assert len({tuple(d) for d in drawn.demonstrations.tolist()}) == 100
    for query, own in zip(drawn.queries.tolist(), drawn.demonstrations.tolist(), strict=True):
        assert len({query, *own}) == 5
    held_out = set(drawn.queries[drawn.held_out].tolist())
    assert len(held_out) == 20
    assert not held_out & set(drawn.demonstrations.flatten().tolist())


def test_the_same_seed_draws_the_same_prompts_and_more_demonstrations_begin_with_fewer(labelled):
    labels = read_examples(str(labelled)).labels
    for balanced in (False, True):
        first, again, more, other = (
            draw_prompts(labels, 60, k, balanced, seed)
            for k, seed in ((3, 1), (3, 1), (6, 1), (3, 2))
        )
        assert torch.equal(first.queries, again.queries)
        assert torch.equal(first.demonstrations, again.demonstrations)
        assert torch.equal(first.demonstrations, more.demonstrations[:, :3])
        assert not torch.equal(first.demonstrations, other.demonstrations)


def test_balanced_demonstrations_have_every_label_equally_often(labelled):
    labels = read_examples(str(labelled)).labels

    def good(balanced, k):
        return labels[draw_prompts(labels, 80, k, balanced, 0).demonstrations].sum(1)

    assert (good(True, 4) == 2).all()
    assert set(good(True, 3).tolist()) == {1, 2}
    assert float(good(False, 4).double().mean()) == pytest.approx(3, abs=0.3)


def test_shuffled_labels_are_as_frequent_and_wrong_as_often_as_chance_has_it(labelled):
    labels = read_examples(str(labelled)).labels
    own = labels[draw_prompts(labels, 150, 4, False, 0).demonstrations]
    shuffled = permuted_labels(own, seed=0)
    assert torch.equal(shuffled.sum(0), own.sum(0))
    share = float(own.double().mean())
    assert float((shuffled != own).double().mean()) == pytest.approx(
        2 * share * (1 - share), abs=0.06
    )
    dependence = torch.corrcoef(torch.stack([own.flatten(), shuffled.flatten()]).double())[0, 1]
    assert abs(float(dependence)) < 0.12


def test_prompts_are_written_as_the_template_says(labelled):
    examples, template = read_examples(str(labelled)), Template(PATTERN)
    drawn = draw_prompts(examples.labels, 60, 2, False, 0)
    others = word_salad(examples.texts, seed=0)
    made = {
        c: write_prompts(examples, drawn, template, c, 2, others, 0)
        for c in ("correct", "shuffled", "unrelated")
    }
    query, first, second = (int(i) for i in (drawn.queries[0], *drawn.demonstrations[0]))
    named = [examples.names[examples.labels[i]] for i in (first, second)]
    expected = "".join(
        f"{examples.texts[i]}\nAnswer: {n}\n\n" for i, n in zip((first, second), named, strict=True)
    )
    assert made["correct"][0] == expected + f"{examples.texts[query]}\nAnswer:"
    answers = {
        c: [line for line in p[0].split("\n") if line.startswith("Answer")] for c, p in made.items()
    }
    assert answers["unrelated"] == answers["correct"]
    assert not set(made["unrelated"][0].split("\n\n")[:2]) & set(
        made["correct"][0].split("\n\n")[:2]
    )
    texts_of = lambda p: [t.replace("good", "").replace("bad", "") for t in p]  # noqa: E731
    assert texts_of(made["shuffled"]) == texts_of(made["correct"])
    assert made["shuffled"] != made["correct"]


def test_a_word_salad_has_the_same_words_and_lengths(labelled):
    texts = read_examples(str(labelled)).texts
    salad = word_salad(texts, seed=0)
    assert Counter(" ".join(salad).split()) == Counter(" ".join(texts).split())
    assert [len(t.split()) for t in salad] == [len(t.split()) for t in texts]
    assert not set(salad) & set(texts)


def test_sentences_of_plain_text(tmp_path):
    (tmp_path / "text.txt").write_text(
        "One is here. Two is there!\nThree? One is here.", encoding="utf-8"
    )
    assert sentences(str(tmp_path / "text.txt"), "text", "train") == [
        "One is here.",
        "Two is there!",
        "Three?",
    ]


def test_labels_of_a_saved_dataset_get_their_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "class": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = {"sentence": ["one", "two", "one", "three"], "class": [1, 0, 1, -1]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    examples = read_examples(str(tmp_path / "saved"), "sentence", "class")
    assert (examples.texts, examples.names, examples.labels.tolist()) == (
        ("one", "two"),
        ("no", "yes"),
        [1, 0],
    )


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_last_states_and_scores_are_those_of_each_prompt_alone(kind, make_model):
    model = LanguageModel.load(
        str(make_model(kind)), ["layers.1", "hidden_states[4]"], causal=True, device="cpu"
    )
    prompts = [
        "The old sailor",
        "A lamp",
        "The quiet river found a golden horse near the harbour.",
        "The child heard a",
    ]
    template = Template("{text} is {label}.")
    answers = template.continuations(["green", "without a word", "quiet"], model.tokenizer)
    assert max(map(len, answers)) > 1
    reading = read_prompts(model, prompts, answers, batch_size=3)
    for row, prompt in enumerate(prompts):
        ids = model.tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            states = model.model(ids, output_hidden_states=True).hidden_states
        for hook, index in zip(model.hooks, (2, 4), strict=True):
            torch.testing.assert_close(
                reading.states[hook.name][row], states[index][0, -1], rtol=1e-4, atol=1e-4
            )
        for place, answer in enumerate(answers):
            whole = torch.cat([ids, torch.tensor([answer])], 1)
            with torch.no_grad():
                chances = model.model(whole).logits[0].log_softmax(-1)
            expected = sum(
                float(chances[ids.shape[1] - 1 + i, token]) for i, token in enumerate(answer)
            )
            assert float(reading.scores[row, place]) == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
def test_a_planted_label_is_found_and_a_random_one_is_not():
    random = torch.Generator().manual_seed(0)
    bits = torch.rand(2000, 60, generator=random) < 0.3
    held_out = torch.arange(2000) >= 1500
    planted = (bits[:, 7].long() + bits[:, 23].long()).clamp(max=1)  # no latent alone tells it
    found = label_information(PackedBits.pack(bits), planted, held_out)
    assert found["label_entropy"] == pytest.approx(label_entropy(planted[held_out]))
    assert found["label_bits"] > 0.9 * found["label_entropy"]
    assert found["label_latent"] in (7, 23)
    assert 0.2 < found["label_bits_latent"] < 0.75 * found["label_entropy"]
    noise = label_information(
        PackedBits.pack(bits), torch.randint(0, 3, (2000,), generator=random), held_out
    )
    assert noise["label_bits"] == pytest.approx(0, abs=0.05)
    assert noise["label_bits_latent"] == pytest.approx(0, abs=0.02)
    three = one_hot(torch.randint(0, 3, (2000,), generator=random), 3).bool()
    exact = label_information(PackedBits.pack(three), three.long().argmax(1), held_out)
    assert exact["label_bits"] == pytest.approx(exact["label_entropy"], abs=0.1)


def test_calibration_takes_from_a_label_what_it_gets_in_every_prompt():
    log_chances = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]]).log()
    numbers, right = answers(log_chances, torch.tensor([0, 0, 1]))
    assert right == {"accuracy": [1, 1, 0], "accuracy_calibrated": [1, 1, 1]}
    assert numbers["accuracy"] == pytest.approx(2 / 3)
    assert numbers["accuracy_low"] < 2 / 3 < numbers["accuracy_high"]
    assert (numbers["chance"], numbers["majority"]) == (0.5, pytest.approx(2 / 3))


def test_prompts_have_their_share_of_the_rows_and_set_the_scale():
    random = torch.Generator().manual_seed(0)
    prompts, text = torch.randn(400, 4, generator=random), 9 * torch.randn(450, 4, generator=random)
    for share, rows in ((0.25, 1600), (0.5, 900), (0.8, 2250)):
        source = PooledSource(prompts, text, share)
        of_text = (source.rows[:, None] == text).all(2).any(1)
        assert len(source.rows) == pytest.approx(rows, abs=1)
        assert float(of_text.double().mean()) == pytest.approx(1 - share, abs=0.01)
        assert {tuple(row) for row in source.rows.tolist()} == {
            tuple(row) for row in torch.cat([prompts, text]).tolist()
        }
        assert source.scale == pytest.approx(1, rel=0.05)
    assert torch.equal(PooledSource(prompts, None, 0.5).rows, prompts)


def test_fitting_states_are_about_their_cells_mean_and_without_held_out_prompts(tmp_path):
    random = torch.Generator().manual_seed(0)
    held_out = torch.arange(10) >= 8
    cells, files = [], []
    for i in range(3):
        cells.append(50 * i + torch.randn(10, 4, generator=random))
        cells[i][held_out] = 1e6  # would be seen in every mean
        files.append(tmp_path / f"{i}.safetensors")
        write_tensors(files[i], {"state": cells[i], "held_out": held_out})
    states, queries = fitting_states(files, "state")
    assert queries.tolist() == [query for query in range(8) for _ in range(3)]
    for i, cell in enumerate(cells):
        torch.testing.assert_close(states[i::3], cell[:8] - cell[:8].mean(0))
        assert torch.equal(centred(cell, held_out)[:8], states[i::3])


def rows_of_queries(bits, label_bits, seeds=(0,)):
    """Rows of a study: by condition and k, what each of four queries has of bits and of label."""
    spread = [-0.2, 0.1, 0.2, -0.1]
    return [
        {"layer": "layers.1", "condition": condition, "k": k, "seed": seed}
        | {
            f"queries: {name}": None if values[condition, k] is None else [
                values[condition, k] + each + seed for each in spread
            ]
            for name, values in (("bits_joint", bits), ("label_bits", label_bits))
        }
        | {"queries: accuracy": [0.0, float(k > 0), float(k > 0), float(k > 1)]}
        | {"queries: places": list(range(4 * seed, 4 * seed + 4))}
        for condition, k in bits
        for seed in seeds
    ]  # fmt: skip


PLACES = [("none", 0), ("correct", 1), ("correct", 2), ("correct", 4), ("shuffled", 4)]


def test_changes_are_paired_over_queries():
    bits = dict(zip(PLACES, (90.0, 80.0, 70.0, 60.0, 85.0), strict=True))
    rows = rows_of_queries(bits, dict.fromkeys(PLACES, -0.5))
    found = {(e.contrast.condition, e.contrast.over): e.numbers for e in effects(rows)}
    change = found["correct", "k 0 to 4"]["bits_joint"]
    assert change is not None
    # what queries differ by among themselves is no uncertainty of what all change by
    assert tuple(change) == pytest.approx((-30, -30, -30))
    assert found["correct", "a doubling of k"]["bits_joint"].value == pytest.approx(-10)
    assert found["correct less shuffled", "k 4"]["bits_joint"].value == pytest.approx(-25)
    accuracy = found["correct", "k 0 to 4"]["accuracy"]
    assert accuracy.value == 0.75
    assert accuracy.low < 0 < accuracy.high  # of four queries
    assert found["correct", "k 0 to 4"]["accuracy_calibrated"] is None
    (sentence,) = sentences_of(effects(rows))
    assert "entropy falls (-30.0 ± 0.0)" in sentence
    assert sentence.endswith("what is lost is not seen to be the answer.")


def test_a_sentence_says_what_is_lost():
    falling = dict(zip(PLACES, (90.0, 80.0, 70.0, 60.0, 55.0), strict=True))
    told = {place: 0.1 * place[1] for place in PLACES}
    (more,) = sentences_of(effects(rows_of_queries(falling, told)))
    assert "what is lost is not the answer, of which the bits tell more" in more
    (lost,) = sentences_of(effects(rows_of_queries(falling, {p: -v for p, v in told.items()})))
    assert "part of what is lost is the answer" in lost
    (rising,) = sentences_of(effects(rows_of_queries({p: p[1] for p in PLACES}, told)))
    assert "nothing is seen to be lost" in rising
    (unknown,) = sentences_of(effects(rows_of_queries({**falling, ("none", 0): None}, told)))
    assert "entropies are left out" in unknown


def sentence_with(control_bits: list[float], control_accuracy: list[float], first=("none", 0)):
    """Of a study in which correct demonstrations take 30 bits and answer every second query."""
    cells = {
        first: ([90.0] * 8, [0.0] * 8),
        ("correct", 4): ([60.0] * 8, [0.0, 1.0, 1.0, 1.0] * 2),
        ("shuffled", 4): (control_bits, control_accuracy),
    }
    (sentence,) = sentences_of(
        effects(
            [
                {"layer": "layers.1", "condition": condition, "k": k, "seed": 0}
                | {"queries: bits_joint": bits, "queries: accuracy": accuracy}
                | {"queries: places": list(range(8))}
                for (condition, k), (bits, accuracy) in cells.items()
            ]
        )
    )
    return sentence


def test_a_control_tells_of_learning_only_if_it_teaches_less_and_is_seen_to_lose_as_much() -> None:
    cause, nothing, noise = "so learning is not the cause", [0.0] * 8, [-20.0, 20.0] * 4
    assert cause in sentence_with([59.0] * 8, nothing)
    assert cause not in sentence_with([59.0] * 8, [0.0, 1.0, 1.0, 1.0] * 2)  # it teaches as much
    assert cause not in sentence_with([60 + each for each in noise], nothing)  # or anything else
    assert cause not in sentence_with([70.0] * 8, nothing)
    assert cause not in sentence_with([59.0] * 8, nothing, first=("correct", 1))


def test_three_seeds_widen_an_interval_by_what_they_differ():
    queries = [torch.tensor([0.0, 1.0]).repeat(50) + shift for shift in (0.0, 1.0, 5.0)]
    places = list(torch.arange(300).split(100))
    assert combined(queries[:2], places[:2]).half == pytest.approx(0.1, abs=0.01)
    assert combined(queries, places).value == 2.5
    assert combined(queries, places).half == pytest.approx(4.3027 * 7**0.5 / 3**0.5, rel=1e-3)


def test_a_query_that_two_seeds_have_drawn_is_one_unit():
    random = torch.Generator().manual_seed(0)
    values, places = torch.randn(400, dtype=torch.float64, generator=random), torch.arange(400)
    once = combined([values], [places])
    assert once.half == pytest.approx(student_quantile(399) * float(values.std()) / 20)
    assert tuple(combined([values, values], [places, places])) == pytest.approx(tuple(once))
    # of 400 queries each seed has drawn three quarters, so that half of them were drawn twice
    misses = 0
    for trial in range(400):
        random.manual_seed(trial)
        truth = torch.randn(400, dtype=torch.float64, generator=random)
        drawn = [torch.randperm(400, generator=random)[:300] for _ in range(2)]
        found = combined([truth[own] for own in drawn], drawn)
        misses += found.differs
    assert 0.02 < misses / 400 < 0.08


def test_a_study_without_several_k_has_nothing_to_contrast():
    assert contrasts(rows_of_queries({("none", 0): 1.0}, {("none", 0): 1.0})) == []


@pytest.mark.slow
def test_a_whole_study_and_what_is_left_of_it_when_resumed(labelled, tmp_path):
    small = {"n_prompts": 100, "n_latents": 64, "steps": 150}
    config = IclConfig(str(labelled), ks=(0, 2), hooks=("layers.0", "layers.3"), **small)
    rows = run(config, Study(tmp_path / "out"))
    cells = [(row["condition"], row["k"], row["layer"]) for row in rows]
    sets = [("none", 0), ("correct", 2), ("shuffled", 2), ("unrelated", 2)]
    assert cells == [(*one, layer) for one in sets for layer in ("layers.0", "layers.3")]
    for row in rows:
        assert 0 <= row["accuracy_calibrated"] <= 1
        assert row["chance"] == 0.5
        assert (row["bits_joint"] is None) == (row["fvu"] > 0.5) == bool(row["left_out"])
        assert len(row["queries: label_bits"]) == 20
        assert len(set(row["queries: places"])) == 100
        assert fmean(row["queries: accuracy"]) == pytest.approx(row["accuracy"])
    assert any(row["bits_joint"] for row in rows)
    assert len({row["label_entropy"] for row in rows}) == 1
    # an autoencoder a layer, and nothing of a query in a column of the table
    assert len(list((tmp_path / "out" / "shared").iterdir())) == 2
    assert not [n for n in read_table(tmp_path / "out" / "table.parquet").column_names if ":" in n]
    assert len(summary(rows)) == 2 * 5
    figures = [
        f"{name}.{kind}" for name in ("entropy", "label", "accuracy") for kind in ("png", "svg")
    ]
    files = [*figures, "icl.md", "table.csv", "table.parquet"]
    assert all((tmp_path / "out" / name).stat().st_size > 500 for name in files)
    states = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "states").iterdir()}
    assert len(states) == 4
    cells = (tmp_path / "out" / "cells").iterdir()
    next(path for path in cells if "fvu" in path.read_text()).unlink()
    measured: list[int] = []
    resumed = Study(
        tmp_path / "out", resume=True, report=lambda done, total, row: measured.append(done)
    )
    again = run(config, resumed)
    assert again == rows
    assert measured == [10]  # two trainings and eight cells
    assert {
        path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "states").iterdir()
    } == states


@pytest.mark.slow
def test_ordinary_text_is_trained_on_where_it_is_named(labelled, tmp_path):
    small: dict = {"n_prompts": 60, "n_latents": 32, "steps": 40, "text_tokens": 1500}
    one: dict = {"ks": (0,), "hooks": ("layers.1",), "text": ("bundled",)}
    (row,) = run(IclConfig(str(labelled), **one, **small), Study(tmp_path / "out"))
    assert row["fvu"] > 0
    (folder,) = (tmp_path / "out" / "shared").iterdir()
    metadata = json.loads((folder / "cfg.json").read_text())["metadata"]
    assert json.loads(metadata["corpus"])[1] == 1500
    page = (tmp_path / "out" / "icl.md").read_text()
    assert "it takes several numbers" in page
    assert f"`fvu` is {row['fvu']:.2f} to {row['fvu']:.2f}" in page


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"text_column": "words"}, "has no column 'words'; name them with `text_column`"),
        ({"label_column": "text"}, "has 240 different labels"),
        ({"template": "{label} then {text}"}, "must have {text} and after it {label}"),
        ({"template": "{text} Answer{label}"}, "melts into the tokens before it"),
        ({"ks": (0, 60)}, "are short enough for k = 60; lower `ks`"),
        ({"n_prompts": 241}, "241 prompts need more: 240 of the 240 texts"),
        ({"n_prompts": 10}, "10 prompts are too few"),
        ({"ks": (-1,)}, "`ks` must be numbers from 0"),
        ({"prompt_share": 1.0}, "`prompt_share` must be between 0 and 1"),
        ({"text_tokens": 0}, "`text_tokens` must be at least 1"),
        ({"conditions": ("wrong",)}, "conditions among correct, shuffled, unrelated"),
        ({"data": "nowhere.jsonl"}, "There is no file nowhere.jsonl"),
        ({"model": "./no-model"}, "The model './no-model' could not be loaded"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence_and_nothing_is_written(
    change, sentence, labelled, tmp_path
):
    config = replace(
        IclConfig(str(labelled), ks=(0, 2), hooks=("layers.0",), n_prompts=100), **change
    )
    with pytest.raises(BitlensError) as error:
        run(config, Study(tmp_path / "out"))
    assert sentence in str(error.value)
    assert not (tmp_path / "out").exists()


def test_one_label_only_is_refused(tmp_path):
    (tmp_path / "one.jsonl").write_text(
        '{"text": "a", "label": "x"}\n{"text": "b", "label": "x"}\n', encoding="utf-8"
    )
    with pytest.raises(BitlensError, match="has 1 different labels"):
        read_examples(str(tmp_path / "one.jsonl"))


def test_an_example_is_short_enough_for_all_demonstrations_to_fit(make_model):
    model = LanguageModel.load(str(make_model("llama")), ["layers.0"], causal=True, device="cpu")
    assert longest_example(model, 3) == 128 // 4 - 1
    with pytest.raises(BitlensError, match="reads 128; lower `ks` or `max_tokens`"):
        read_prompts(model, ["The old sailor found a lamp. " * 40], [[5]])
