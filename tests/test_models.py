"""Hidden states are those of transformers, hook points have three names, and nothing above the
last one is loaded."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bitlens.errors import BitlensError
from bitlens.hidden import LanguageModel
from bitlens.hidden.named import bundled_folder
from conftest import LAYERS, WIDTH

KINDS = ["llama", "gpt2", "gpt_neox", "qwen3", "bert"]
BLOCKS = {
    "llama": "model.layers",
    "gpt2": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
    "qwen3": "model.layers",
    "bert": "bert.encoder.layer",
}
ATTENTION = {"llama": "self_attn", "gpt2": "attn", "gpt_neox": "attention", "qwen3": "self_attn"}


def load(folder, *hooks, **settings):
    return LanguageModel.load(str(folder), list(hooks), device="cpu", **settings)


def some_tokens(padded):
    """Three contexts of 24 tokens; padded: of 24, 15 and 1 tokens, with padding on the right."""
    tokens = torch.randint(6, 300, (3, 24), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    if padded:
        for row, length in enumerate((24, 15, 1)):
            tokens[row, length:], mask[row, length:] = 2, 0
    return tokens, mask


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("kind", KINDS)
class TestHiddenStates:
    def transformers_own(self, folder, padded):
        tokens, mask = some_tokens(padded)
        full = transformers.AutoModel.from_pretrained(folder).eval()
        with torch.no_grad():
            out = full(tokens, attention_mask=mask if padded else None, output_hidden_states=True)
        return out.hidden_states

    @pytest.mark.slow
    def test_every_layer_equals_transformers(self, make_model, kind, padded):
        expected = self.transformers_own(make_model(kind), padded)
        assert len(expected) == LAYERS + 1
        for layer, states in enumerate(expected):
            model = load(make_model(kind), f"hidden_states[{layer}]")
            found = model.hidden_states(*some_tokens(padded))
            assert torch.equal(found[model.hooks[0].name], states), layer

    def test_all_layers_in_one_pass_equal_transformers(self, make_model, kind, padded):
        expected = self.transformers_own(make_model(kind), padded)
        model = load(make_model(kind), *(f"hidden_states[{layer}]" for layer in range(LAYERS + 1)))
        found = model.hidden_states(*some_tokens(padded))
        for hook, states in zip(model.hooks, expected, strict=True):
            assert torch.equal(found[hook.name], states), hook

    @pytest.mark.slow
    def test_mlp_and_attention_equal_hooks_on_the_full_model(self, make_model, kind, padded):
        tokens, mask = some_tokens(padded)
        full = transformers.AutoModel.from_pretrained(make_model(kind)).eval()
        block = full.get_submodule(BLOCKS[kind].partition(".")[2])[2]
        if kind == "bert":
            mlp_in, mlp_out, attention = (
                block.intermediate,
                block.output.dense,
                block.attention.output.dense,
            )
            names = [
                "blocks.2.mlp.hook_in",
                "layers.2.output.dense",
                "layers.2.attention.output.dense",
            ]
        else:
            mlp_in, mlp_out, attention = block.mlp, block.mlp, block.get_submodule(ATTENTION[kind])
            names = ["blocks.2.mlp.hook_in", "blocks.2.hook_mlp_out", "blocks.2.hook_attn_out"]
        seen = {}
        mlp_in.register_forward_pre_hook(lambda module, args: seen.update(mlp_in=args[0]))
        mlp_out.register_forward_hook(lambda module, args, out: seen.update(mlp_out=out))
        attention.register_forward_hook(
            lambda module, args, out: seen.update(
                attention=out[0] if isinstance(out, tuple) else out
            )
        )
        with torch.no_grad():
            full(tokens, attention_mask=mask if padded else None)

        model = load(make_model(kind), *names)
        found = model.hidden_states(tokens, mask)
        for hook, key in zip(model.hooks, ("mlp_in", "mlp_out", "attention"), strict=True):
            assert torch.equal(found[hook.name], seen[key]), hook


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_three_names_of_a_layer_are_one_hook_point(make_model, kind):
    lens = "blocks.1.hook_normalized_resid_post" if kind == "bert" else "blocks.1.hook_resid_post"
    names = [
        "layers.1",
        f"{BLOCKS[kind]}.1",
        f"{BLOCKS[kind].partition('.')[2]}.1",
        "hidden_states[2]",
        lens,
    ]
    points = [load(make_model(kind), name).hooks[0].names() for name in names]
    module = f"{BLOCKS[kind].partition('.')[2]}.1"
    assert points[0] == {
        "module": module,
        "transformers": "hidden_states[2]",
        "transformer_lens": lens,
    }
    assert all(point == points[0] for point in points)


@pytest.mark.parametrize(
    ("kind", "name", "module", "transformers_name", "lens_name"),
    [
        (
            "llama",
            "hidden_states[0]",
            "layers.0:input",
            "hidden_states[0]",
            "blocks.0.hook_resid_pre",
        ),
        (
            "llama",
            "layers.3",
            "layers.3",
            None,
            "blocks.3.hook_resid_post",
        ),  # before the final norm
        ("llama", "layers.-1", "layers.3", None, "blocks.3.hook_resid_post"),
        ("llama", "hidden_states[4]", "norm", "hidden_states[4]", None),
        (
            "bert",
            "layers.3",
            "encoder.layer.3",
            "hidden_states[4]",
            "blocks.3.hook_normalized_resid_post",
        ),
        (
            "bert",
            "blocks.1.hook_resid_post",
            "encoder.layer.1.output.LayerNorm:input",
            None,
            "blocks.1.hook_resid_post",
        ),
        ("gpt2", "hidden_states[4]", "ln_f", "hidden_states[4]", None),
        ("llama", "layers.2.mlp:input", "layers.2.mlp:input", None, "blocks.2.mlp.hook_in"),
        ("llama", "model.layers.2.self_attn", "layers.2.self_attn", None, "blocks.2.hook_attn_out"),
        ("bert", "encoder.layer.0.output.dense", "encoder.layer.0.output.dense", None, None),
        ("llama", "layers.2.self_attn.q_proj", "layers.2.self_attn.q_proj", None, None),
    ],
)
def test_names_of_hook_points(make_model, kind, name, module, transformers_name, lens_name):
    (hook,) = load(make_model(kind), name).hooks
    assert hook.names() == {
        "module": module,
        "transformers": transformers_name,
        "transformer_lens": lens_name,
    }


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("layers.9", "layers.3"),
        ("layers.-9", "layers."),
        ("layers.1.mpl", "layers.1.mlp"),
        ("hidden_states[17]", "layers."),
        ("norn", "norm"),
        ("blocks.4.hook_resid_post", "layers.3"),
        ("layers.1:sideways", "layers.1"),
        ("", "layers."),
        ("blocks.1.hook_z", "hook_resid_post"),
    ],
)
def test_an_unknown_hook_point_lists_the_nearest_names(tiny_llama, name, near):
    with pytest.raises(
        BitlensError, match=rf"There is no hook point '.*: .*{near.replace('.', '[.]')}"
    ):
        load(tiny_llama, name)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_above_the_last_hook_point_are_not_in_memory(make_model, kind):
    whole = transformers.AutoModel.from_pretrained(make_model(kind))
    blocks = whole.get_submodule(BLOCKS[kind].partition(".")[2])
    above = sum(p.numel() for block in list(blocks)[2:] for p in block.parameters())
    model = load(
        make_model(kind),
        "layers.0",
        "layers.1.mlp:input" if kind != "bert" else "layers.1.output.dense",
    )
    kept = sum(p.numel() for p in model.model.parameters())
    assert kept == sum(p.numel() for p in whole.parameters()) - above
    assert model.memory() == 4 * kept
    assert len(model.base.get_submodule(BLOCKS[kind].partition(".")[2])) == 2


@pytest.mark.parametrize(("name", "ran"), [("layers.1", 2), ("layers.1:input", 1), ("norm", 4)])
def test_the_forward_pass_stops_after_the_last_hook_point(tiny_llama, name, ran):
    model = load(tiny_llama, name, causal=True)
    seen = []
    for block in model.base.layers:
        block.mlp.register_forward_hook(lambda *args: seen.append(1))
    model.hidden_states(*some_tokens(False))
    assert len(seen) == ran


def test_hooks_leave_the_model_as_it_was(tiny_llama):
    tokens, _ = some_tokens(False)
    model = load(tiny_llama, "layers.1", causal=True)
    full = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    model.hidden_states(tokens)
    with torch.no_grad():
        assert torch.equal(model.model(tokens).logits, full(tokens).logits)


def test_one_place_may_be_asked_for_twice(tiny_llama):
    model = load(tiny_llama, "layers.1", "hidden_states[2]", "layers.2")
    found = model.hidden_states(*some_tokens(False))
    assert set(found) == {"layers.1", "layers.2"}
    assert torch.equal(
        found["layers.1"],
        load(tiny_llama, "layers.1").hidden_states(*some_tokens(False))["layers.1"],
    )


def test_widths(tiny_llama):
    model = load(tiny_llama, "layers.1", "layers.1.mlp.gate_proj", "layers.0.self_attn.k_proj")
    assert model.widths() == {
        "layers.1": WIDTH,
        "layers.1.mlp.gate_proj": 2 * WIDTH,
        "layers.0.self_attn.k_proj": 16,
    }


@pytest.mark.parametrize(("kind", "name"), [("bert", "pooler"), ("llama", "embed_tokens:input")])
def test_modules_without_a_vector_per_token_are_refused(make_model, kind, name):
    with pytest.raises(BitlensError, match="does not give one vector per token"):
        load(make_model(kind), name).widths()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtype(tiny_llama, dtype):
    model = load(tiny_llama, "layers.1", dtype=dtype)
    assert model.dtype == getattr(torch, dtype)
    assert model.hidden_states(*some_tokens(False))["layers.1"].dtype == getattr(torch, dtype)


def test_half_precision_weights_are_run_in_float32_on_a_cpu(tiny_llama, tmp_path):
    transformers.AutoModelForCausalLM.from_pretrained(
        tiny_llama, dtype=torch.float16
    ).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path)
    assert load(tmp_path, "layers.1").dtype == torch.float32


@pytest.mark.parametrize("dtype", ["int8", "float", "half a float", "nn"])
def test_unknown_dtypes_are_refused(tiny_llama, dtype):
    if dtype == "float":  # torch has this name too, and it is a floating point type
        assert load(tiny_llama, "layers.1", dtype=dtype).dtype == torch.float32
    else:
        with pytest.raises(BitlensError, match=f"dtype '{dtype}' is none of"):
            load(tiny_llama, "layers.1", dtype=dtype)


def test_the_bundled_model_is_installed():
    model = load("bundled", "layers.1")
    tokens = torch.tensor([model.tokenizer("The king said that he would go.")["input_ids"]])
    expected = transformers.AutoModel.from_pretrained(bundled_folder(), dtype=torch.float32)
    with torch.no_grad():
        states = expected(tokens, output_hidden_states=True).hidden_states
    assert torch.equal(model.hidden_states(tokens)["layers.1"], states[2])


# --- models that cannot be loaded ---------------------------------------------------------------


@pytest.fixture
def copied(tiny_llama, tmp_path):
    """A copy of `tiny_llama` to be damaged."""
    return shutil.copytree(tiny_llama, tmp_path / "copied")


def refusal(folder, *hooks, **settings):
    """The one sentence with which a model is refused."""
    with pytest.raises(BitlensError) as error:
        load(folder, *(hooks or ("layers.1",)), **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "name", ["./nowhere", "somebody/no-such-model-anywhere", "not a name at all"]
)
def test_a_model_that_is_not_there(name):
    assert f"'{name}' could not be loaded: it is neither a folder here nor a model" in refusal(name)


def test_a_folder_without_a_model(tmp_path):
    assert str(tmp_path) in refusal(tmp_path)


def test_a_model_without_safetensors(copied):
    weights = transformers.AutoModelForCausalLM.from_pretrained(copied).state_dict()
    (copied / "model.safetensors").unlink()
    torch.save(weights, copied / "pytorch_model.bin")
    assert "it has no safetensors weights" in refusal(copied)


def test_truncated_weights(copied):
    weights = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(weights[:5000])
    assert str(copied) in refusal(copied)


def test_weights_that_lack_a_tensor_of_a_layer(copied):
    weights = load_file(copied / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    assert "they lack layers.1.mlp.up_proj.weight" in refusal(copied)
    assert load(copied, "layers.0").widths() == {
        "layers.0": WIDTH
    }  # which needs only what is there


@pytest.mark.newest
@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("hidden_size", 64, "its weights have other shapes than its config.json says"),
        ("num_hidden_layers", 9, "they lack layers.4"),
        ("num_attention_heads", 5, "multiple of the number of attention heads"),
        ("model_type", "weird", "does not recognize this architecture"),
    ],
)
def test_a_config_that_does_not_fit(copied, key, value, reason):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {key: value}))
    assert reason in refusal(copied, "layers.1" if key != "num_hidden_layers" else "layers.8")


@pytest.mark.newest
def test_a_model_without_tokenizer(copied):
    for file in copied.glob("*token*"):
        file.unlink()
    assert str(copied) in refusal(copied)


def test_a_damaged_config(copied):
    (copied / "config.json").write_text("{ this is no JSON")
    assert str(copied) in refusal(copied)


def test_an_encoder_decoder_model(make_model):
    assert "is an encoder-decoder model" in refusal(make_model("t5"))


def test_an_encoder_has_no_next_token_loss(make_model):
    assert "is not a causal language model" in refusal(make_model("bert"), causal=True)


def test_code_that_comes_with_a_model_is_never_run(copied, tmp_path):
    config = json.loads((copied / "config.json").read_text())
    config |= {
        "model_type": "mine",
        "auto_map": {"AutoConfig": "mine.Mine", "AutoModel": "mine.Mine"},
    }
    (copied / "config.json").write_text(json.dumps(config))
    (copied / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass\n")
    assert "needs code of its own" in refusal(copied)
    assert not (tmp_path / "ran").exists()
