"""What the explorer's server answers, against the same in Python."""

import gzip
import json
import math

import pytest
import torch

from bitlens.autoencoders import Autoencoder, BinaryAutoencoder, ReLUAutoencoder
from bitlens.bits.codes import Codes
from bitlens.causal.intervene import intervene
from bitlens.encode import encode_store
from bitlens.evaluation.numbers import first_rows
from bitlens.explorer import gathering
from bitlens.explorer.explorer import Explorer, Sources
from bitlens.features.profiles import profiles
from bitlens.features.search import matching, nearest
from bitlens.hidden import ActivationStore, Corpus, LanguageModel, PairedStore
from bitlens.hidden.harvest import harvest
from bitlens.hidden.text import ContextReader
from bitlens.labels.sources import load_tokenizer
from bitlens.seeding import generator
from bitlens.training import TrainConfig, train
from explored import HOOK, LATENTS, TEXT, ask, served


@pytest.fixture(scope="module")
def model():
    return LanguageModel.load("bundled", [HOOK], device="cpu", causal=True)


@pytest.fixture(scope="module")
def autoencoder(made):
    return Autoencoder.from_pretrained(made.bae)


# --- what a static copy has, too ------------------------------------------------------------------


@pytest.mark.slow
def test_the_page_and_its_files_are_sent_with_a_policy_that_allows_nothing_foreign(site):
    answer = site.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "server" not in answer.headers
    assert "access-control-allow-origin" not in answer.headers
    assert site.get("/app.js").headers["content-type"].startswith("text/javascript")


def test_the_run_is_described(site, made):
    run = site.get("/api/run.json").json()
    store = ActivationStore(made.store)
    assert (run["title"], run["architecture"], run["bits"]) == ("bae", "bae", True)
    assert (run["model"], run["hook"], run["rows"]) == ("bundled", HOOK, len(store))
    assert run["live"] is True
    assert run["beside"]["title"] == "topk"
    lines = (made.bae / "metrics.jsonl").read_text().splitlines()
    assert run["curves"]["step"] == [json.loads(line)["step"] for line in lines]
    mse = [json.loads(line)["mse"] for line in lines]
    assert run["curves"]["mse"] == pytest.approx(mse, rel=1e-4)
    assert set(run["curves_meaning"]) == set(run["curves"]) - {"step"}
    assert dict(run["made"])["hook point"].startswith(HOOK)
    assert dict(run["made"])["rows"] == f"{len(store):,}"
    train_again = next(line for line in run["commands"] if line.startswith("bitlens train"))
    assert f"--n-latents {LATENTS} --steps 60 --batch-size 128" in train_again
    assert f"bitlens evaluate {made.bae} {made.store}" in run["commands"]
    assert (run["kind"], run["beside"]["kind"]) == ("Binary autoencoder", "TopK autoencoder")


def test_the_table_and_the_pages_are_the_profiles(site, made):
    codes = Codes(made.codes)
    expected = profiles(codes, tokenizer=load_tokenizer(codes), examples=0, progress=False)
    table = site.get("/api/latents.json").json()["data"]
    assert table["latent"] == list(range(codes.n_latents))
    assert table["rate"] == pytest.approx([p.rate for p in expected], rel=1e-4)
    assert table["tokens"] == [[t.text for t in p.tokens[:5]] for p in expected]
    best = max(expected, key=lambda p: p.rate)
    page = site.get(f"/api/latents/{best.latent}.json").json()
    assert page["surprisal"] == pytest.approx(best.surprisal, rel=1e-4)
    assert [p["text"] for p in page["preferred"]] == [t.text for t in best.tokens]
    assert page["next"][0]["lift"] == pytest.approx(best.next_tokens[0].lift, rel=1e-4)
    assert [n["latent"] for n in page["tree"]] == best.tree
    assert len(page["promotes"]) == len(page["suppresses"]) == 8
    logits = [one["logit"] for one in page["promotes"] + page["suppresses"]]
    assert min(logits[:8]) > max(logits[8:])
    assert f"column({best.latent})" in page["python"]


def test_examples_have_the_marked_token_and_shaded_neighbours(site, made):
    codes = Codes(made.codes)
    tokenizer = load_tokenizer(codes)
    latent = int(codes.bits.column_counts().argmax())
    column, examples = codes.bits.column(latent), []
    for example in site.get(f"/api/latents/{latent}.json").json()["examples"]:
        first = example["row"] - example["at"]
        rows = slice(first, first + len(example["tokens"]))
        examples.append(example["document"])
        assert codes.document[rows].tolist() == [example["document"]] * len(example["tokens"])
        assert [t["v"] for t in example["tokens"]] == column[rows].tolist()
        assert example["tokens"][example["at"]]["v"] == 1
        text = "".join(t["t"] for t in example["tokens"])
        assert text == tokenizer.decode(codes.token[rows].tolist())
    assert len(examples) == len(set(examples)) > 10


def test_latents_that_are_on_together(made, explorer):
    bits = Codes(made.codes).bits
    on = bits.unpack().double()
    n, both = len(on), on.T @ on
    counts = on.sum(0)
    for latent, near in enumerate(gathering.together(bits, 3)[:20]):
        union = counts[latent] + counts - both[latent]
        p, q = counts[latent] / n, counts / n
        by_chance = p * q / (p + q - p * q).clamp_min(1e-300)
        score = (both[latent] / union.clamp_min(1) - by_chance) / (1 - by_chance)
        score[latent] = 0
        best = score.sort(descending=True).values[:3]
        values = [one["value"] for one in near]
        assert values == pytest.approx([v for v in best.tolist() if v > 0], abs=1e-9)


def test_two_runs_are_matched_on_rows_of_both(site, explorer):
    answer = site.get("/api/compare.json").json()
    assert (answer["a"]["title"], answer["b"]["title"]) == ("bae", "topk")
    assert sum(answer["counts"].values()) == len(answer["rows"]) == explorer.subject.n_latents
    line = max(answer["rows"], key=lambda row: row["jaccard"])
    other = site.get(f"/api/beside/{line['b']}.json").json()
    assert other["rate"] == pytest.approx(line["b_rate"], rel=1e-4)
    W_a, W_b = (s.autoencoder.W_dec for s in (explorer.subject, explorer.other.subject))
    cosine = torch.nn.functional.cosine_similarity(W_a[line["a"]], W_b[line["b"]], 0)
    assert line["cosine"] == pytest.approx(cosine.item(), abs=1e-4)


def test_large_answers_are_sent_compressed(site):
    with site.stream("GET", "/api/latents.json", headers={"accept-encoding": "gzip"}) as answer:
        raw = b"".join(answer.iter_raw())
    assert answer.headers["content-encoding"] == "gzip"
    plain = gzip.decompress(raw)
    assert json.loads(plain) == site.get("/api/latents.json").json()
    assert len(raw) < len(plain) / 2


# --- the language model ---------------------------------------------------------------------------


def test_a_text_has_the_bits_and_predictions_of_the_python_api(site, model, autoencoder, explorer):
    tokens = ask(site, "text", text=TEXT).json()["tokens"]
    ids = model.tokenizer(TEXT)["input_ids"]
    if ids[0] != model.tokenizer.bos_token_id:
        ids = [model.tokenizer.bos_token_id, *ids]
    assert [t["position"] for t in tokens] == list(range(len(ids)))
    assert "".join(t["t"] for t in tokens[1:]) == TEXT
    assert tokens[0]["left_out"]
    assert tokens[0]["bits"] == []
    states = model.hidden_states(torch.tensor([ids]))[HOOK][0]
    on = autoencoder.encode_bits(states).unpack()
    with torch.inference_mode():
        p = model.model(input_ids=torch.tensor([ids])).logits[0].softmax(-1)
    rates = [record["rate"] for record in explorer.subject.records]
    for position, token in enumerate(tokens[1:], 1):
        latents = [bit["latent"] for bit in token["bits"]]
        assert sorted(latents) == on[position].nonzero()[:, 0].tolist()
        assert [rates[i] for i in latents] == sorted(rates[i] for i in latents)
        assert token["on"] == len(latents)
        top = p[position].topk(5).values.tolist()
        assert [n["p"] for n in token["next"]] == pytest.approx(top, rel=1e-4)


@pytest.mark.parametrize(("positions", "others"), [(None, "kept"), ([-1, 3], "searched")])
def test_held_bits_give_the_numbers_of_the_python_api(site, model, autoencoder, positions, others):
    tokens = ask(site, "text", text=TEXT).json()["tokens"]
    held = {tokens[-1]["bits"][0]["latent"]: 0, 7: 1}
    asked = {"holds": {str(k): v for k, v in held.items()}, "positions": positions}
    answer = ask(site, "hold", text=TEXT, others=others, **asked).json()
    ids = [model.tokenizer.bos_token_id]
    ids += model.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        before = model.model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        with intervene(model, autoencoder, held, positions, others):
            after = model.model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    assert answer["kl_div"] == pytest.approx(float((before.exp() * (before - after)).sum()))
    assert answer["kl_div"] > 0
    for side, logs in (("before", before), ("after", after)):
        shown = [one["p"] for one in answer[side]["next"]]
        assert sorted(shown, reverse=True)[:10] == pytest.approx(
            logs.exp().topk(10).values.tolist()
        )
    assert [n["t"] for n in answer["before"]["next"]] == [n["t"] for n in answer["after"]["next"]]
    moved = (after.exp() - before.exp()).abs().topk(10).values.tolist()
    assert [abs(c["after"] - c["before"]) for c in answer["changes"]] == pytest.approx(moved)
    assert "continuation" not in answer["before"]


@pytest.mark.slow
def test_nothing_held_changes_nothing_and_a_seed_gives_its_continuation_again(site):
    how = {"tokens": 12, "temperature": 0.9, "seed": 5}
    first, again = (ask(site, "hold", text=TEXT, holds={}, **{"continue": how}) for _ in range(2))
    first, again = first.json(), again.json()
    assert first["kl_div"] == 0
    assert first["before"] == first["after"] == again["before"]
    assert first["before"]["continuation"]
    other = ask(site, "hold", text=TEXT, holds={}, **{"continue": how | {"seed": 6}}).json()
    assert other["before"]["continuation"] != first["before"]["continuation"]


def test_a_held_bit_is_held_in_the_continuation_too(site, model, autoencoder):
    how = {"tokens": 8, "temperature": 0}
    held = {"3": 1, "7": 1, "11": 1, "20": 1}
    answer = ask(site, "hold", text=TEXT, holds=held, **{"continue": how}).json()
    ids = torch.tensor(
        [
            [model.tokenizer.bos_token_id]
            + model.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
        ]
    )
    with intervene(model, autoencoder, {int(k): v for k, v in held.items()}), torch.no_grad():
        out = model.model.generate(
            ids,
            max_new_tokens=8,
            do_sample=False,
            use_cache=True,
            attention_mask=torch.ones_like(ids),
        )[0].tolist()
    prompt = model.tokenizer.decode(ids[0].tolist())
    assert prompt + answer["after"]["continuation"] == model.tokenizer.decode(out)


def test_contexts_near_a_token_and_with_bits_on_and_off(site, model, autoencoder, made):
    codes = Codes(made.codes)
    ids = [model.tokenizer.bos_token_id]
    ids += model.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    states = model.hidden_states(torch.tensor([ids]))[HOOK][0]
    hits = nearest(codes, autoencoder.encode_bits(states[4:5]), 10)
    found = ask(site, "near", text=TEXT, position=4).json()["contexts"]
    assert [c["row"] for c in found] == [hit.row for hit in hits]
    assert [c["similarity"] for c in found] == pytest.approx([h.similarity for h in hits], abs=1e-4)
    assert [c["shared"] for c in found] == [hit.shared for hit in hits]
    on, off = found[0]["shared"][:1], [found[0]["shared"][-1]]
    found = ask(site, "find", on=on, off=off, limit=5).json()
    assert found["count"] == matching(codes, on, off, 5).found
    for context in found["contexts"]:
        assert codes.bits.column(on[0])[context["row"]] == 1
        assert codes.bits.column(off[0])[context["row"]] == 0
        assert context["tokens"][context["at"]]["v"] == 1


@pytest.mark.slow
def test_a_sparse_autoencoder_holds_values(made):
    autoencoder = Autoencoder.from_pretrained(made.topk)
    with served(Explorer(Sources(made.topk))) as site:
        run = site.get("/api/run.json").json()
        assert run["bits"] is False
        assert run["hold_max"] > 0
        tokens = ask(site, "text", text=TEXT).json()["tokens"]
        bit = tokens[-1]["bits"][0]
        assert bit["value"] > 0
        assert len(tokens[-1]["bits"]) <= autoencoder.settings["k"]
        answer = ask(site, "hold", text=TEXT, holds={str(bit["latent"]): 2 * run["hold_max"]})
        assert answer.json()["kl_div"] > 0
        refused = ask(site, "hold", text=TEXT, holds={"1": 1}, others="searched")
        assert site.get("/api/run.json").json()["searched"] is False
        assert refused.status_code == 400
        assert "descent" in refused.json()["sentence"]


@pytest.mark.slow
def test_a_transcoder_is_shown_and_held(tmp_path, text_folder):
    hooks = ["layers.2.mlp:input", "layers.2.mlp"]
    model = LanguageModel.load("bundled", hooks, device="cpu")
    reader = ContextReader(Corpus((str(text_folder),)), model.tokenizer, 64, packed=False)
    stores = harvest(model, reader, tmp_path / "stores")
    config = TrainConfig("transcoder", n_latents=64, k=8, steps=60, batch_size=128, device="cpu")
    train(PairedStore(*(store.path for store in stores)), config, tmp_path / "run")
    with served(Explorer(Sources(tmp_path / "run"))) as site:
        run = site.get("/api/run.json").json()
        assert run["live"]
        assert run["hold_max"] > 0
        tokens = ask(site, "text", text=TEXT).json()["tokens"]
        latent = tokens[-1]["bits"][0]["latent"]
        assert len(site.get(f"/api/latents/{latent}.json").json()["promotes"]) == 8
        assert ask(site, "hold", text=TEXT, holds={str(latent): 0}).json()["kl_div"] > 0
        assert ask(site, "near", text=TEXT, position=3).json()["contexts"]


def often_on(made, folder, autoencoder, latents: int) -> Sources:
    """A run, and its codes, in which these first latents are not zero in four rows of five."""
    store, trained = ActivationStore(made.store), Autoencoder.from_pretrained(made.bae)
    autoencoder.initialise(generator("often on"))
    autoencoder.mean.copy_(trained.mean)
    autoencoder.scale.copy_(trained.scale)
    autoencoder.metadata = {k: v for k, v in trained.metadata.items() if k != "training"}
    x = autoencoder.standardise(first_rows(store, "all", len(store)))
    autoencoder.b_enc.data -= torch.quantile(autoencoder.pre_activations(x), 0.7, dim=0).detach()
    low = torch.quantile(autoencoder.pre_activations(x), 0.2, dim=0).detach()
    autoencoder.b_enc.data[:latents] -= low[:latents]
    autoencoder.save(folder / "run")
    encode_store(autoencoder, store, folder / "codes")
    return Sources(folder / "run", folder / "codes")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [BinaryAutoencoder, ReLUAutoencoder])
def test_latents_that_are_rarely_zero_are_on_there_and_held_as_said(made, model, tmp_path, kind):
    width, step = model.model.config.hidden_size, kind is BinaryAutoencoder
    autoencoder = BinaryAutoencoder(width, 64, coding="step") if step else kind(width, 64)
    explorer = Explorer(often_on(made, tmp_path, autoencoder, 8))
    codes, flipped = explorer.subject.codes, explorer.subject.flipped
    assert flipped.tolist() == [True] * 8 + [False] * 56
    ids = torch.tensor([model.tokenizer(TEXT)["input_ids"]])
    assert ids[0, 0] == model.tokenizer.bos_token_id
    h = autoencoder.encode(model.hidden_states(ids)[HOOK][0]).detach()
    with served(explorer) as site:
        rates = site.get("/api/latents.json").json()["data"]["rate"]
        usual = codes.bits.unpack()[codes.usual].double().mean(0)
        assert rates == pytest.approx(torch.minimum(usual, 1 - usual).tolist(), rel=1e-4)
        tokens = ask(site, "text", text=TEXT).json()["tokens"]
        for position, token in enumerate(tokens[1:], 1):
            rare = ((h[position] != 0) ^ flipped).nonzero()[:, 0].tolist()
            assert sorted(bit["latent"] for bit in token["bits"]) == rare
            for bit in token["bits"]:
                surprisal = -math.log2(rates[bit["latent"]])
                assert bit["surprisal"] == pytest.approx(surprisal, rel=1e-3)
                if kind is ReLUAutoencoder:
                    value = float(h[position, bit["latent"]])
                    assert bit["value"] == pytest.approx(value, rel=1e-4)
        for value in (0, 1) if kind is BinaryAutoencoder else (0, 0.5, 3):
            raw = {2: 1 - value if kind is BinaryAutoencoder else value, 40: value}
            with torch.no_grad(), intervene(model, autoencoder, raw):
                logs = model.model(input_ids=ids).logits[0, -1].log_softmax(-1)
            answer = ask(site, "hold", text=TEXT, holds={"2": value, "40": value})
            assert answer.status_code == 200, answer.text
            shown = sorted((n["p"] for n in answer.json()["after"]["next"]), reverse=True)[:10]
            assert shown == pytest.approx(logs.exp().topk(10).values.tolist(), rel=1e-4)
        found = ask(site, "find", on=[2], off=[40], limit=5).json()
        both = (codes.bits.column(2) == 0) & (codes.bits.column(40) == 0) & codes.usual
        assert found["count"] == int(both.sum())
        assert all(both[context["row"]] for context in found["contexts"])
        for example in site.get("/api/latents/2.json").json()["examples"]:
            assert codes.bits.column(2)[example["row"]] == 0
            assert example["tokens"][example["at"]]["v"] == 1
