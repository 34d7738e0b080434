"""Effects of latents on what a model says, against plain interventions one row at a time."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import bitlens
from architectures import tiny_config
from bitlens.autoencoders import BinaryAutoencoder, TopKAutoencoder, Transcoder
from bitlens.causal import rerun, unfinished
from bitlens.causal.effect import Effect
from bitlens.causal.effects import effects
from bitlens.causal.intervene import intervene, steering_vector
from bitlens.causal.rerun import Rerun
from bitlens.causal.splice import draw_contexts
from bitlens.causal.switches import Contexts, draw_flips
from bitlens.cli import main
from bitlens.cli.effects import _clear
from bitlens.errors import BitlensError
from bitlens.files import finite, read_tensors, write_tensors
from bitlens.hidden import ActivationStore, Corpus, LanguageModel
from bitlens.hidden.harvest import harvest
from bitlens.hidden.hooks import attach
from bitlens.hidden.text import ContextReader
from bitlens.information.intervals import jackknife
from bitlens.seeding import generator

HOOK, LATENTS = "layers.2", 40
BUNDLED_MODEL = Path(bitlens.__file__).parent / "bundled" / "model"
LIMITS = {"contexts": 5, "rows": 6, "following": 3, "top": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("effects") / "store"
    model = LanguageModel.load("bundled", [HOOK], device="cpu")
    reader = ContextReader(
        Corpus(("bundled",)), model.tokenizer, 48, packed=True, test_fraction=0.3
    )
    harvest(model, reader, path, max_rows=4000)
    return path


@pytest.fixture(scope="module")
def store(folder):
    return ActivationStore(folder)


@pytest.fixture(scope="module")
def model():
    return LanguageModel.load("bundled", [HOOK], device="cpu", causal=True)


def made(kind: str, store, seed: int = 0):
    """An untrained autoencoder whose latents, directions that occur, are on in some rows."""
    rows = store.sample(256, generator("rows"))
    d, g = rows.shape[1], generator(kind, seed)
    if kind == "topk":
        autoencoder = TopKAutoencoder(d, LATENTS, k=6)
    else:
        autoencoder = BinaryAutoencoder(d, LATENTS, coding=kind)
    autoencoder.mean.copy_(rows.mean(0))
    autoencoder.scale.copy_(rows.std())
    mixed = torch.randn(LATENTS, len(rows), generator=g) @ ((rows - rows.mean(0)) / rows.std())
    mixed = mixed / mixed.norm(dim=1, keepdim=True)
    autoencoder.W_dec.data = mixed * torch.linspace(6, 10, LATENTS)[:, None]
    autoencoder.W_enc.data = mixed.T.clone()
    autoencoder.b_enc.data.fill_(-2.0)
    autoencoder.b_dec.data.zero_()
    if kind == "descent":
        autoencoder.price.fill_(2.0)
    return autoencoder.eval().requires_grad_(False)


def log_probs(model, ids):
    with torch.no_grad():
        logits = model.model(input_ids=ids[None]).logits[0]
    return logits[:, : len(model.tokenizer)].double().log_softmax(-1)


def flips_of(model, autoencoder, store, switch):
    drawn = Contexts(model, *draw_contexts(store, LIMITS["contexts"]), store.outlier_norm)
    encoded = drawn.encoded(autoencoder)
    flips = draw_flips(encoded, autoencoder, range(LATENTS), LIMITS["rows"], switch, 0)
    return drawn, encoded, flips


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "switch"), [("step", "off"), ("descent", "off"), ("descent", "on"), ("topk", "on")]
)
def test_every_number_equals_plain_interventions(model, store, kind, switch):
    autoencoder = made(kind, store)
    found = effects(model, autoencoder, store, switch=switch, **LIMITS)
    drawn, encoded, flips = flips_of(model, autoencoder, store, switch)
    assert [effect.latent for effect in found] == list(range(LATENTS))
    measured = 0
    for effect in found[::7]:
        mine = (flips.latent == effect.latent).nonzero()[:, 0].tolist()
        assert effect.rows == len(mine) <= LIMITS["rows"]
        assert effect.rate == len(encoded.of(effect.latent)[0]) / len(encoded.context)
        if not mine:
            assert math.isnan(effect.kl_div)
            assert effect.raises == []
            continue
        measured += 1
        kl, rise, change, units = [], [], [], []
        for flip in mine:
            row = int(flips.row[flip])
            which, place = int(encoded.context[row]), int(encoded.position[row])
            ids = drawn.tokens(which)
            state = model.hidden_states(ids[None])[HOOK][0, place][None]
            code = float(autoencoder.encode(state)[0, effect.latent])
            assert (code > 0) == (switch == "off")
            value = 1.0 if autoencoder.binary else float(encoded.of(effect.latent)[1].mean())
            value = 0.0 if switch == "off" else value
            before = log_probs(model, ids)
            with intervene(model, autoencoder, {effect.latent: value}, [place]) as held:
                after = log_probs(model, ids)
            assert held.changed == 1
            kl.append(float((before[place].exp() * (before[place] - after[place])).sum()))
            change.append((after[place] - before[place]) * (1 if switch == "on" else -1))
            window = [
                float(before[t, ids[t + 1]] - after[t, ids[t + 1]])
                for t in range(place, min(place + LIMITS["following"], len(ids) - 1))
                if int(ids[t + 1]) not in model.tokenizer.all_special_ids
            ]
            rise.append(sum(window) / len(window))
            units.append(int(drawn.units[which]))
        assert effect.kl_div == pytest.approx(sum(kl) / len(kl), rel=1e-3, abs=1e-5)
        assert effect.loss == pytest.approx(sum(rise) / len(rise), rel=1e-2, abs=1e-4)
        mean = torch.stack(change).mean(0)
        assert [t.logp for t in effect.raises] == pytest.approx(
            mean.topk(5).values.tolist(), rel=1e-3, abs=1e-3
        )
        assert [t.logp for t in effect.lowers] == pytest.approx(
            (-(-mean).topk(5).values).tolist(), rel=1e-3, abs=1e-3
        )
        assert float(mean[effect.raises[0].token]) == pytest.approx(
            effect.raises[0].logp, rel=1e-3, abs=1e-3
        )
        own = sorted(set(units))
        sizes = torch.tensor([units.count(unit) for unit in own])
        sums = torch.zeros(len(own), dtype=torch.float64)
        for unit, value in zip(units, rise, strict=True):
            sums[own.index(unit)] += value

        def mean_loss(weights, sums=sums, sizes=sizes):
            return ((weights @ sums) / (weights @ sizes.double()))[:, None]

        (expected,) = jackknife(mean_loss, sizes)
        assert effect.loss_low == pytest.approx(expected.low, rel=1e-2, abs=1e-3, nan_ok=True)
        assert effect.loss_high == pytest.approx(expected.high, rel=1e-2, abs=1e-3, nan_ok=True)
    assert measured >= 3


@pytest.mark.slow
def test_a_model_that_keeps_to_no_mask_gives_the_same(model, store, monkeypatch, capsys):
    autoencoder = made("descent", store)
    fast = effects(model, autoencoder, store, range(8), **LIMITS)
    monkeypatch.setattr(Rerun, "_keeps_to_the_mask", lambda self, context: False)
    slow = effects(model, autoencoder, store, range(8), **LIMITS)
    assert "runs in a copy of its context" in capsys.readouterr().err.replace("\n", " ")
    for one, other in zip(fast, slow, strict=True):
        assert one.rows == other.rows
        for name in ("kl_div", "kl_control", "loss", "loss_low", "loss_high"):
            expected = pytest.approx(getattr(other, name), rel=1e-3, abs=1e-5, nan_ok=True)
            assert getattr(one, name) == expected
        assert [t.logp for t in one.raises] == pytest.approx(
            [t.logp for t in other.raises], abs=1e-3
        )


@pytest.mark.slow
def test_only_what_rises_is_raised(model, store):
    vocabulary = model.model.config.vocab_size
    found = effects(model, made("step", store), store, range(4), **LIMITS | {"top": vocabulary})
    assert any(effect.rows for effect in found)
    for effect in found:
        assert all(token.logp > 0 for token in effect.raises)
        assert all(token.logp < 0 for token in effect.lowers)
        assert not {t.token for t in effect.raises} & {t.token for t in effect.lowers}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "qwen3"])
@pytest.mark.parametrize("place", ["layer", "mlp", "input"])
def test_changes_in_one_pass_equal_full_passes(kind, place, make_model):
    block = "h" if kind == "gpt2" else "layers"
    name = {"layer": f"{block}.2", "mlp": f"{block}.1.mlp", "input": f"{block}.2:input"}[place]
    later = f"{block}.3"
    model = LanguageModel.load(
        str(make_model(kind)), [name, later], device="cpu", causal=True, dtype="float32"
    )
    runs = Rerun(model, model.hooks[0], model.hooks[1], 3)
    ids = torch.randint(6, 300, (20,), generator=generator(kind))
    runs.prepare(ids)
    assert runs.packs
    context = runs.context(ids)
    position = torch.tensor([0, 3, 3, 7, 17, 18])
    delta = torch.randn(6, 32, generator=generator("delta"))
    (outcome,) = runs(context, position, delta)
    for index, at in enumerate(position.tolist()):

        def add(x, at=at, index=index):
            x = x.clone()
            x[0, at] += delta[index]
            return x

        with attach(model.base, model.hooks[0], add):
            expected = log_probs(model, ids)
            states = model.hidden_states(ids[None])[model.hooks[1].name][0]
        assert torch.allclose(outcome.log_probs[index].double(), expected[at], atol=1e-4)
        assert torch.allclose(outcome.later[index], states[at], atol=1e-4)
        for step in range(3):
            if at + step + 1 < len(ids):
                loss = -float(expected[at + step, ids[at + step + 1]])
                assert float(outcome.losses[index, step]) == pytest.approx(loss, abs=1e-4)
            else:
                assert outcome.losses[index, step].isnan()
    with torch.no_grad():
        assert torch.equal(model.model(input_ids=ids[None]).logits[0], context.logits)


def windowed(kind: str, window: int) -> Any:
    """A small model whose layers see so many tokens, one of them at least"""
    config = tiny_config(kind)
    if kind == "gpt_neo":
        config.window_size = window
    else:
        config.sliding_window = window
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "window", "packs"),
    [
        ("gemma3_text", 16, False),
        ("gemma3_text", 64, True),
        ("mistral", 16, False),
        ("gpt_neo", 16, False),
        ("gpt_neo", 64, False),  # its positions end at 128, a pass is longer
        ("qwen3_next", None, False),  # linear attention
    ],
)
def test_models_with_windows_equal_full_passes(kind, window, packs, tmp_path):
    """The first context is shorter than the window, a later one longer."""
    windowed(kind, window).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(
        Path(bitlens.__file__).parent / "bundled" / "model"
    ).save_pretrained(tmp_path)
    hook = "h.1" if kind == "gpt_neo" else "layers.1"
    model = LanguageModel.load(str(tmp_path), [hook], device="cpu", causal=True, dtype="float32")
    assert len(model.tokenizer) > 400  # more than the model has logits for
    ids = torch.randint(6, 300, (40,), generator=generator(kind))
    runs = Rerun(model, model.hooks[0], None, 3)
    runs.prepare(ids)
    assert runs.packs == packs
    for length in (10, 40):
        context = runs.context(ids[:length])
        position = torch.linspace(0, length - 2, 30).long()
        delta = torch.randn(30, 32, generator=generator("delta"))
        log_probs = torch.cat([each.log_probs for each in runs(context, position, delta)])
        for index in range(0, 30, 5):

            def add(x, at=int(position[index]), step=delta[index]):
                x = x.clone()
                x[0, at] += step
                return x

            with torch.no_grad(), attach(model.base, model.hooks[0], add):
                logits = model.model(input_ids=ids[None, :length]).logits[0]
            expected = logits[int(position[index])].log_softmax(-1)
            assert torch.allclose(log_probs[index], expected, atol=1e-4)


@pytest.mark.slow
def test_the_size_of_a_pass_and_of_a_table_does_not_matter(model, store, monkeypatch):
    autoencoder = made("step", store)
    whole = effects(model, autoencoder, store, range(10), **LIMITS)
    monkeypatch.setattr(rerun, "PACK_BYTES", 1)
    monkeypatch.setattr("bitlens.causal.effects.TABLE_BYTES", 3 * 4 * 4096)
    parts = effects(model, autoencoder, store, range(10), **LIMITS)
    for one, other in zip(whole, parts, strict=True):
        assert one.rows == other.rows
        assert one.kl_div == pytest.approx(other.kl_div, rel=1e-3, abs=1e-5, nan_ok=True)
        assert one.loss == pytest.approx(other.loss, rel=1e-3, abs=1e-5, nan_ok=True)


@pytest.mark.slow
def test_latents_of_a_second_autoencoder_downstream(store):
    both = LanguageModel.load("bundled", [HOOK, "layers.4"], device="cpu", causal=True)
    autoencoder, later = made("step", store), made("step", store, seed=1)
    found = effects(both, autoencoder, store, range(6), downstream=later, control=False, **LIMITS)
    assert all(math.isnan(effect.kl_control) for effect in found)
    assert len(both.hooks) == 2
    model = LanguageModel.load("bundled", [HOOK], device="cpu", causal=True)
    drawn, encoded, flips = flips_of(model, autoencoder, store, "off")
    for effect in found:
        changes = []
        for flip in (flips.latent == effect.latent).nonzero()[:, 0].tolist():
            row = int(flips.row[flip])
            ids, place = drawn.tokens(int(encoded.context[row])), int(encoded.position[row])
            vector = steering_vector(autoencoder, effect.latent)

            def less(x, place=place, vector=vector):
                x = x.clone()
                x[0, place] -= vector
                return x

            before = both.hidden_states(ids[None])["layers.4"][0, place]
            with attach(both.base, both.hooks[0], less):
                after = both.hidden_states(ids[None])["layers.4"][0, place]
            changes.append(later.encode(before[None])[0] - later.encode(after[None])[0])
        expected = torch.stack(changes).mean(0) if changes else torch.zeros(LATENTS)
        named = {moved.latent: moved.value for moved in effect.downstream}
        for latent, value in named.items():
            assert value == pytest.approx(float(expected[latent]), abs=1e-5)
        least = min((abs(v) for v in named.values()), default=0.0)
        others = [abs(v) for j, v in enumerate(expected.tolist()) if j not in named]
        assert max(others) <= max(least, 1e-5) + 1e-5
    assert any(effect.downstream for effect in found)


@pytest.mark.slow
def test_a_transcoder_changes_what_it_writes(store):
    names = ["layers.2.mlp:input", "layers.2.mlp"]
    model = LanguageModel.load("bundled", names, device="cpu", causal=True)
    transcoder = Transcoder(256, LATENTS, k=5, d_out=256)
    transcoder.initialise(generator("transcoder"))
    transcoder.W_dec.data = torch.randn(LATENTS, 256, generator=generator("decoder"))
    transcoder.scale_out.fill_(2.0)
    found = effects(model, transcoder, store, range(12), part="all", control=False, **LIMITS)
    drawn = Contexts(model, *draw_contexts(store, LIMITS["contexts"], "all"), store.outlier_norm)
    encoded = drawn.encoded(transcoder)
    flips = draw_flips(encoded, transcoder, range(12), LIMITS["rows"], "off", 0)
    effect = max(found, key=lambda effect: effect.rows)
    kl = []
    for flip in (flips.latent == effect.latent).nonzero()[:, 0].tolist():
        row = int(flips.row[flip])
        ids, place = drawn.tokens(int(encoded.context[row])), int(encoded.position[row])
        before = log_probs(model, ids)[place]
        with intervene(model, transcoder, {effect.latent: 0}, [place]):
            after = log_probs(model, ids)[place]
        kl.append(float((before.exp() * (before - after)).sum()))
    assert effect.kl_div == pytest.approx(sum(kl) / len(kl), rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_the_control_is_as_long_a_step_along_another_decoder_row(model, store):
    autoencoder = made("step", store)
    found = effects(model, autoencoder, store, range(3), **LIMITS)
    drawn, encoded, _ = flips_of(model, autoencoder, store, "off")
    flips = draw_flips(encoded, autoencoder, range(3), LIMITS["rows"], "off", 0)
    assert (flips.other != flips.latent).all()
    effect = found[1]
    kl = []
    for flip in (flips.latent == 1).nonzero()[:, 0].tolist():
        row, other = int(flips.row[flip]), int(flips.other[flip])
        ids, place = drawn.tokens(int(encoded.context[row])), int(encoded.position[row])
        own, along = steering_vector(autoencoder, 1), steering_vector(autoencoder, other)

        step = along / along.norm() * own.norm()

        def less(x, place=place, step=step):
            x = x.clone()
            x[0, place] -= step
            return x

        before = log_probs(model, ids)[place]
        with attach(model.base, model.hooks[0], less):
            after = log_probs(model, ids)[place]
        kl.append(float((before.exp() * (before - after)).sum()))
    assert kl
    assert effect.kl_control == pytest.approx(sum(kl) / len(kl), rel=1e-3)


@pytest.mark.slow
def test_a_model_of_half_precision(store):
    half = LanguageModel.load("bundled", [HOOK], device="cpu", causal=True, dtype="bfloat16")
    full = LanguageModel.load("bundled", [HOOK], device="cpu", causal=True)
    autoencoder = made("step", store)
    one, other = (effects(m, autoencoder, store, range(6), **LIMITS) for m in (half, full))
    for rough, exact in zip(one, other, strict=True):
        if exact.rows == rough.rows and exact.rows:
            assert rough.kl_div == pytest.approx(exact.kl_div, rel=0.5, abs=0.05)


def test_bad_input_is_refused(model, store):
    autoencoder = made("step", store)
    for arguments, message in (
        ({"latents": [LATENTS]}, f"no latent {LATENTS}"),
        ({"rows": 0}, "`rows` must be at least 1"),
        ({"switch": "up"}, "off or on, not 'up'"),
        ({"downstream": autoencoder}, "as its last one"),
    ):
        with pytest.raises(BitlensError, match=message):
            effects(model, autoencoder, store, **arguments)  # type: ignore[arg-type]
    below = LanguageModel.load("bundled", [HOOK, "layers.1"], device="cpu", causal=True)
    with pytest.raises(BitlensError, match="does not lie above"):
        effects(below, autoencoder, store, downstream=autoencoder)


def test_records_are_plain(model, store):
    (effect,) = effects(model, made("step", store), store, [1], **LIMITS)
    record = json.loads(json.dumps(asdict(effect)))
    assert set(record["raises"][0]) == {"token", "text", "logp"}
    assert record["raises"][0]["text"] == model.tokenizer.decode([record["raises"][0]["token"]])


@pytest.mark.slow
def test_the_command_prints_and_writes(folder, store, tmp_path, capsys, monkeypatch):
    for name, seed in (("run", 0), ("later", 1)):
        autoencoder = made("step", store, seed)
        hook = HOOK if name == "run" else "layers.4"
        autoencoder.metadata = {"hook": {"module": hook}}
        autoencoder.save(tmp_path / name)
    limits = ["--contexts", "4", "--rows", "3", "--part", "all", "--device", "cpu"]
    given = ["effects", str(tmp_path / "run"), str(folder), *limits]
    more = ["--latents", "1", "2", "3", "--downstream", str(tmp_path / "later")]
    out, numbers = tmp_path / "effects.jsonl", tmp_path / "numbers.json"
    main([*given, *more, "--out", str(out), "--json", str(numbers)])
    shown = capsys.readouterr().out
    assert "each latent switched off" in " ".join(shown.split())  # wherever the title is broken
    assert "downstream" in shown
    records = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    both = LanguageModel.load("bundled", [HOOK, "layers.4"], device="cpu", causal=True)
    one, later = (BinaryAutoencoder.from_pretrained(tmp_path / n) for n in ("run", "later"))
    expected = effects(
        both, one, store, [1, 2, 3], contexts=4, rows=3, part="all", downstream=later
    )
    assert records == [finite(asdict(effect)) for effect in expected]
    said = json.loads(numbers.read_text(encoding="utf-8"))
    assert said["latents"] == 3
    assert {e["latent"] for e in said["effects"]} == {e.latent for e in expected if e.rows}
    for wrong, sentence in (
        (["--out", str(tmp_path / "effects.csv")], "written as .jsonl or .parquet"),
        (["--latents", "99"], "There is no latent 99"),
        (["--rows", "0"], "--rows must be at least 1"),
        (["--top", "0"], "--top must be at least 1"),
    ):
        with pytest.raises(SystemExit):
            main([*given, *wrong])
        assert sentence in capsys.readouterr().err.replace("\n", " ")


# --- a measurement that is stopped ----------------------------------------------------------------


@pytest.mark.slow
def test_a_measurement_goes_on_after_every_context(model, store, tmp_path, monkeypatch):
    """With control, two tables, a second autoencoder, and a cut after each context in turn."""
    monkeypatch.setattr(unfinished, "SAVE_SECONDS", 0)
    monkeypatch.setattr(unfinished, "SHARE", 0)
    monkeypatch.setattr("bitlens.causal.effects.TABLE_BYTES", 6 * 4 * 4200)
    both = LanguageModel.load("bundled", [HOOK, "layers.4"], device="cpu", causal=True)
    autoencoder, later = made("step", store), made("descent", store, seed=1)
    given = (both, autoencoder, store, range(9))
    whole = effects(*given, downstream=later, **LIMITS)
    save, cuts = unfinished.Unfinished.save, 0

    def cut(self, *arguments):
        save(self, *arguments)
        raise KeyboardInterrupt

    for _ in range(30):
        with monkeypatch.context() as patch:
            patch.setattr(unfinished.Unfinished, "save", cut)
            try:
                found = effects(
                    *given, downstream=later, unfinished=tmp_path / "kept", resume=True, **LIMITS
                )
                break
            except KeyboardInterrupt:
                cuts += 1
    assert cuts > 5
    assert repr([asdict(e) for e in found]) == repr([asdict(e) for e in whole])
    for changed in (
        {"seed": 1},
        {"downstream": made("descent", store, seed=2)},
        {"latents": range(8)},
    ):
        arguments = {"latents": range(9), "downstream": later} | LIMITS | changed
        with pytest.raises(BitlensError, match="with other settings"):
            effects(
                both, autoencoder, store, unfinished=tmp_path / "kept", resume=True, **arguments
            )
    (kept,) = (tmp_path / "kept").glob("effects-0.json")
    kept.write_text(kept.read_text().replace('"rows": ', '"rows": 1', 1))
    with pytest.raises(BitlensError, match=r"effects-0\.json is damaged"):
        effects(*given, downstream=later, unfinished=tmp_path / "kept", resume=True, **LIMITS)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").touch()
    with pytest.raises(BitlensError, match="was not written by this command"):
        effects(*given, downstream=later, unfinished=tmp_path / "other", **LIMITS)
    assert (tmp_path / "other" / "mine").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda sums, header: (sums, {}),
        lambda sums, header: (sums, header | {"contexts": "two"}),
        lambda sums, header: ({}, header),
        lambda sums, header: ({k: v[:1] for k, v in sums.items()}, header),
        lambda sums, header: ({k: v + (k == "a") for k, v in sums.items()}, header),
    ],
)
def test_sums_that_are_not_those_that_were_saved_are_refused(tmp_path, monkeypatch, change):
    monkeypatch.setattr(unfinished, "SAVE_SECONDS", 0)
    monkeypatch.setattr(unfinished, "SHARE", 0)
    sums = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}
    unfinished.Unfinished(tmp_path / "kept", False, {}).save(0, 7, sums)
    again = unfinished.Unfinished(tmp_path / "kept", True, {})
    into = {name: torch.zeros_like(values) for name, values in sums.items()}
    assert again.restore(1, into) == 0
    assert again.restore(0, into) == 7
    assert all(torch.equal(into[name], sums[name]) for name in sums)
    file = tmp_path / "kept" / unfinished.TABLE
    with safe_open(file, framework="pt") as opened:
        tensors, header = change(read_tensors(file), opened.metadata())
    write_tensors(file, tensors, header)
    into["a"].zero_()
    with pytest.raises(BitlensError, match=r"table\.safetensors is damaged; delete .*kept"):
        again.restore(0, into)
    assert not into["a"].any()


def test_few_rows_do_not_lead_the_table():
    def effect(latent: int, kl_div: float, low: float) -> Effect:
        numbers = dict.fromkeys(
            ["kl_div_high", "kl_control", "loss", "loss_low", "loss_high"], math.nan
        )
        return Effect(
            latent, 0.1, 3, "off", kl_div, low, raises=[], lowers=[], downstream=[], **numbers
        )

    found = [effect(0, 9.0, math.nan), effect(1, 2.0, 1.5), effect(2, 5.0, -3.0)]
    assert [e.latent for e in sorted(found, key=_clear, reverse=True)] == [1, 2, 0]
