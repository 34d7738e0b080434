"""An autoencoder hooked to a plain transformers model, against Splice and by hand."""

import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from bitlens.autoencoders import BinaryAutoencoder, TopKAutoencoder, Transcoder
from bitlens.causal.intervene import change_codes
from bitlens.causal.splice import Splice
from bitlens.errors import BitlensError
from bitlens.hidden import LanguageModel
from bitlens.hidden.hooks import attach
from bitlens.hidden.named import bundled_folder
from bitlens.seeding import generator

HOOK, LATENTS = "layers.2", 48
TEXTS = ["Call me Ishmael. Some years ago", "It was the best of times, it was the worst", "She"]


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(bundled_folder(), padding_side="left")


@pytest.fixture(scope="module")
def plain():
    kind = transformers.AutoModelForCausalLM
    return kind.from_pretrained(bundled_folder(), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def inputs(tokenizer):
    return tokenizer(TEXTS, return_tensors="pt", padding=True)


@torch.no_grad()
def states_of(model, inputs):
    return model(**inputs, output_hidden_states=True).hidden_states[3]


def usual(tokenizer, inputs):
    special = torch.isin(inputs["input_ids"], torch.tensor(tokenizer.all_special_ids))
    return inputs["attention_mask"].bool() & ~special


@pytest.fixture(scope="module", params=["step", "descent", "topk"])
def autoencoder(request, plain, tokenizer, inputs):
    """Untrained; its latents, directions that occur, are on in some rows."""
    rows = states_of(plain, inputs)[usual(tokenizer, inputs)]
    g, d = generator("autoencoder", request.param), rows.shape[1]
    if request.param == "topk":
        autoencoder = TopKAutoencoder(d, LATENTS, k=8)
    else:
        autoencoder = BinaryAutoencoder(d, LATENTS, coding=request.param)
    autoencoder.initialise(g)
    autoencoder.mean.copy_(rows.mean(0))
    autoencoder.scale.copy_(rows.std())
    mixed = torch.randn(LATENTS, len(rows), generator=g) @ (rows - rows.mean(0))
    autoencoder.W_dec.data = 8 * mixed / mixed.norm(dim=1, keepdim=True)
    autoencoder.W_enc.data = autoencoder.W_dec.data.T / 8
    autoencoder.metadata = {"hook": {"module": HOOK}}
    return autoencoder.eval()


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits


def test_recording_changes_no_bit_and_gives_the_codes(autoencoder, plain, tokenizer, inputs):
    rows = usual(tokenizer, inputs)
    before = logits(plain, inputs)
    with autoencoder.hook(plain, tokenizer=tokenizer) as hooked:
        assert torch.equal(logits(plain, inputs), before)
    assert torch.equal(hooked.passes[0].encoded, rows)
    expected = autoencoder.encode(states_of(plain, inputs)[rows])
    assert torch.equal(hooked.codes[rows], expected)
    assert expected.any()
    assert not hooked.codes[~rows].any()
    with autoencoder.hook(plain, record=False) as hooked:
        logits(plain, inputs)
    with pytest.raises(BitlensError, match="No pass was recorded"):
        _ = hooked.codes
    assert torch.equal(logits(plain, inputs), before)  # nothing stays hooked


def test_reconstructions_cost_what_splice_says(autoencoder, plain, tokenizer, inputs):
    model = LanguageModel.load("bundled", [HOOK], device="cpu", causal=True)
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    length = max(map(len, ids))
    contexts = torch.tensor([row + [-1] * (length - len(row)) for row in ids])
    norms = states_of(plain, inputs)[usual(tokenizer, inputs)].norm(dim=1)
    limit = float(norms.quantile(0.8))  # some hidden states stay as they are
    splice = Splice(model, contexts, contexts >= 0, torch.zeros(256), max_norm=limit)
    tokens = splice.tokens([autoencoder])[0]
    padded = {"input_ids": contexts.clamp_min(0), "attention_mask": (contexts >= 0).long()}
    with autoencoder.hook(plain, replace=True, tokenizer=tokenizer, max_norm=limit):
        found = logits(plain, padded).log_softmax(-1)
    targets = contexts[tokens.context, tokens.position]
    ce = -found[tokens.context, tokens.position - 1, targets]
    torch.testing.assert_close(ce, tokens.ce_spliced, atol=2e-5, rtol=1e-5)
    assert (tokens.ce_spliced - tokens.ce_original).abs().max() > 0.1


def test_error_term_leaves_all_but_changed_codes(autoencoder, plain, tokenizer, inputs):
    before = logits(plain, inputs)
    settings = {"replace": True, "use_error_term": True, "tokenizer": tokenizer}
    with autoencoder.hook(plain, **settings):
        assert torch.equal(logits(plain, inputs), before)

    def off(codes):
        codes = codes.clone()
        codes[:, ::2] = 0
        return codes

    model = LanguageModel.load("bundled", [HOOK], device="cpu", causal=True)
    with change_codes(model, autoencoder, lambda rows: off(rows.codes)):
        expected = logits(model.model, inputs)
    with autoencoder.hook(model, replace=True, use_error_term=True, change=off):
        found = logits(model.model, inputs)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (expected - before).abs().max() > 0.1


def test_gradients_pass_through_the_codes_alone(plain, tokenizer, inputs, autoencoder):
    """As with SAELens' error term: x_hat + (x - x_hat), of which the second part is constant."""
    rows = usual(tokenizer, inputs)

    def gradients(hooked):
        plain.zero_grad()
        autoencoder.zero_grad()
        with hooked:
            plain(**inputs).logits[:, -1, 3].sum().backward()
        found = autoencoder.W_dec.grad, plain.get_input_embeddings().weight.grad
        return [grad.clone() for grad in found]

    def by_hand(x):
        x_hat = autoencoder(x[rows])
        return x.index_put((rows,), x_hat + (x[rows] - x_hat).detach())

    settings = {"replace": True, "use_error_term": True, "tokenizer": tokenizer}
    found = gradients(autoencoder.hook(plain, **settings))
    expected = gradients(
        attach(plain.base_model, LanguageModel.of(plain, [HOOK]).hooks[0], by_hand)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)
    assert found[0].any()
    plain.zero_grad()
    autoencoder.zero_grad()


def test_generate_with_a_cache_and_padding(autoencoder, plain, tokenizer, inputs):
    settings = {"do_sample": False, "max_new_tokens": 4, "min_new_tokens": 4}
    before = plain.generate(**inputs, **settings)
    with torch.no_grad(), autoencoder.hook(plain, tokenizer=tokenizer) as hooked:
        assert torch.equal(plain.generate(**inputs, **settings), before)
    assert [p.codes.shape[1] for p in hooked.passes] == [inputs["input_ids"].shape[1], 1, 1, 1]
    codes = torch.cat([p.codes for p in hooked.passes], 1)
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, 3, dtype=torch.long)], 1)
    whole = {"input_ids": before[:, :-1], "attention_mask": mask}
    with torch.no_grad(), autoencoder.hook(plain, tokenizer=tokenizer) as again:
        plain(**whole)
    different = (codes - again.codes).abs() > 1e-3  # a sum in another order may move a bit
    assert int(different.sum()) <= 1
    with autoencoder.hook(plain, replace=True, tokenizer=tokenizer):
        assert not torch.equal(plain.generate(**inputs, **settings), before)


def test_half_precision_keeps_its_dtype(autoencoder, plain, tokenizer, inputs):
    kind = transformers.AutoModelForCausalLM
    half = kind.from_pretrained(bundled_folder(), dtype=torch.bfloat16).eval()
    before = logits(half, inputs)
    settings = {"replace": True, "use_error_term": True}
    with autoencoder.hook(half, **settings) as hooked:
        assert torch.equal(logits(half, inputs), before)
    assert hooked.codes.dtype == torch.float32
    rows = usual(tokenizer, inputs)
    expected = autoencoder.encode(states_of(half, inputs)[rows])
    assert torch.equal(hooked.codes[rows], expected)
    with autoencoder.hook(half, replace=True):
        assert logits(half, inputs).dtype == torch.bfloat16


def test_a_transcoder_reads_at_one_place_and_writes_at_another(plain, tokenizer, inputs):
    transcoder = Transcoder(256, LATENTS, k=4, d_out=256)
    transcoder.W_dec.data.normal_(generator=generator("transcoder"))
    names = {"hook": "layers.1.mlp:input", "target_hook": "layers.1.mlp"}
    transcoder.metadata = {kind: {"module": name} for kind, name in names.items()}
    rows, base = usual(tokenizer, inputs), plain.base_model
    first, last = LanguageModel.of(plain, list(names.values())).hooks
    read = []

    def by_hand(y):
        return y.index_put((rows,), transcoder(read[0][rows]))

    with attach(base, first, read.append), attach(base, last, by_hand):
        expected = logits(plain, inputs)
    with transcoder.hook(plain, replace=True, tokenizer=tokenizer) as hooked:
        found = logits(plain, inputs)
    torch.testing.assert_close(found, expected)
    assert torch.equal(hooked.codes[rows], transcoder.encode(read[0][rows]))


def test_positions_and_blocks_in_one_another(autoencoder, plain, tokenizer, inputs):
    with (
        autoencoder.hook(plain, positions=[-1], tokenizer=tokenizer) as last,
        autoencoder.hook(plain, tokenizer=tokenizer) as every,
    ):
        logits(plain, inputs)
    assert last.passes[0].encoded.sum(1).tolist() == [1, 1, 1]
    torch.testing.assert_close(last.codes[:, -1], every.codes[:, -1])


def test_what_cannot_be_hooked_is_said_in_one_sentence(autoencoder, plain):
    with pytest.raises(BitlensError, match=r"take replace=True\.$"):
        autoencoder.hook(plain, use_error_term=True)
    with (
        pytest.raises(BitlensError, match="not a Linear; name the one that it holds"),
        autoencoder.hook(torch.nn.Linear(2, 2)),
    ):
        pass
    stranger = TopKAutoencoder(256, 4, k=1)
    with pytest.raises(BitlensError, match="does not know its hook point"), stranger.hook(plain):
        pass
    stranger.metadata = {"hook": {"module": "layers.40"}}
    with pytest.raises(BitlensError, match=r"no hook point 'layers\.40'"), stranger.hook(plain):
        pass


@pytest.mark.slow
def test_within_a_trace_of_nnsight(autoencoder, plain, tokenizer):
    """Hooked around the trace, or called in it: both see what the model computes."""
    nnsight = pytest.importorskip("nnsight")
    model = nnsight.TransformersModel(plain, task="text-generation", tokenizer=tokenizer)
    text = TEXTS[0]
    inputs = tokenizer(text, return_tensors="pt")
    with autoencoder.hook(plain, replace=True, tokenizer=tokenizer) as hooked:
        expected = logits(plain, inputs)
        with torch.no_grad(), model.trace(text):
            around = model.lm_head.output.save()
    torch.testing.assert_close(around, expected)
    codes = hooked.passes[0].codes
    assert torch.equal(hooked.codes, codes)
    with torch.no_grad(), model.trace(text):
        x = model.model.layers[2].output
        inside = autoencoder.encode(x).save()
        x[:, 1:] = autoencoder.decode(inside)[:, 1:]  # <|bos|> stays
        found = model.lm_head.output.save()
    torch.testing.assert_close(inside[:, 1:], codes[:, 1:])
    torch.testing.assert_close(found, expected)


@pytest.mark.slow
def test_in_a_bridge_of_transformer_lens(autoencoder, plain, tokenizer):
    boot = pytest.importorskip("transformer_lens.model_bridge").TransformerBridge.boot_transformers
    folder, plain = str(bundled_folder()), copy.deepcopy(plain)  # a bridge changes its model
    bridge = boot(folder, hf_model=plain, tokenizer=tokenizer)
    tokens = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    with autoencoder.hook(bridge.original_model, replace=True, tokenizer=tokenizer):
        around = bridge(tokens)

    def replaced(x, hook):
        return torch.cat([x[:, :1], autoencoder(x[:, 1:])], 1)

    name = "blocks.2.hook_resid_post"
    assert LanguageModel.of(plain, [name]).hooks[0].name == HOOK
    found = bridge.run_with_hooks(tokens, fwd_hooks=[(name, replaced)])
    torch.testing.assert_close(around, found, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_the_code_of_the_page_runs(codes_folder, tmp_path):
    """In a script: nnsight reads the source of what is traced."""
    pytest.importorskip("nnsight")
    page = (Path(__file__).parent.parent / "docs/ecosystem-features.md").read_text("utf-8")
    said = "torch.testing.assert_close(same, logits, atol=1e-4, rtol=1e-4)"
    script = "\n".join([*re.findall(r"```python\n(.*?)```", page, re.DOTALL), said])
    (tmp_path / "page.py").write_text(script, encoding="utf-8")
    (tmp_path / "run").symlink_to(codes_folder.parent / "run")
    (tmp_path / "model").symlink_to(bundled_folder())
    done = subprocess.run(
        [sys.executable, "page.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
