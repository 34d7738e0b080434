"""What hook points mean, for every architecture of transformers that can be built small.

Four invariants: `hidden_states[i]` is transformers' own; resid_pre + attn_out + mlp_out =
resid_post; a hook point read together with others is what it is alone; a name for which that does
not hold is refused in a sentence.
"""

from __future__ import annotations

import functools
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from architectures import KINDS, LAYERS, small_model, tiny_config
from bitlens.errors import BitlensError
from bitlens.hidden import LanguageModel
from bitlens.hidden.hooks import Architecture
from bitlens.hidden.trace import Trace


@pytest.fixture(scope="module")
def folder_of(make_tokenizer, tmp_path_factory):
    @functools.cache
    def save(kind):
        folder = tmp_path_factory.mktemp(kind)
        small_model(kind).save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
        return folder

    return save


def tokens():
    return torch.randint(6, 380, (3, 7), generator=torch.Generator().manual_seed(0))


def load(folder, *hooks):
    return LanguageModel.load(str(folder), list(hooks), device="cpu")


def read(model):
    """What the model gives at its hook points, in their order."""
    found = model.hidden_states(tokens())
    return [found[hook.name] for hook in model.hooks]


def names(layers):
    blocks = (
        "hook_resid_pre",
        "hook_attn_out",
        "hook_mlp_out",
        "hook_resid_post",
        "hook_normalized_resid_post",
    )
    return [f"hidden_states[{i}]" for i in range(layers + 1)] + [
        f"blocks.{i}.{k}" for i in range(layers) for k in blocks
    ]


def accepted(of, call):
    """The names for which the call is not refused; a refusal is one sentence."""
    kept, refused = [], {}
    for name in of:
        try:
            call(name)
            kept.append(name)
        except BitlensError as error:
            refused[name] = str(error)
    assert not any(
        "\n" in refusal or "could not be loaded" in refusal for refusal in refused.values()
    ), refused
    return kept


def close(one, other):
    return torch.allclose(one, other, rtol=1e-4, atol=1e-4 * float(other.std()))


def transformers_own(folder):
    whole, loading = transformers.AutoModel.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    if loading["missing_keys"] - {"pooler.dense.weight", "pooler.dense.bias"}:
        pytest.skip("transformers does not read what it wrote")
    whole.eval()
    whole.config.use_cache = whole.config.get_text_config().use_cache = False
    with torch.no_grad():
        return whole, getattr(
            whole(input_ids=tokens(), output_hidden_states=True), "hidden_states", None
        ) or ()


def check(folder, names, states):
    """Every name means what it says, and the same alone as with all others."""
    if not names:
        return {}
    model = load(folder, *names)
    together = dict(zip(names, read(model), strict=True))
    places = dict(zip(model.hooks, names, strict=True))  # several names may be of one place
    for name, hook in zip(names, model.hooks, strict=True):
        assert name in hook.names().values()
        assert torch.equal(together[name], together[places[hook]])
    for hook, name in places.items():
        model.hooks = [hook]
        assert torch.equal(read(model)[0], together[name]), f"{name} alone and together"
    for index, state in enumerate(states):
        assert torch.equal(together.get(f"hidden_states[{index}]", state), state), (
            f"hidden_states[{index}]"
        )
    for layer in range(LAYERS):
        pre, attention, mlp, post = (
            together.get(f"blocks.{layer}.hook_{kind}")
            for kind in ("resid_pre", "attn_out", "mlp_out", "resid_post")
        )
        if attention is not None and mlp is not None:
            assert close(pre + attention + mlp, post), f"layer {layer}"
    return together


# What is not refused: all of transformers' hidden states, what attention and MLP add.
EXPECTED = {
    "llama": (4, 6),
    "gemma2": (4, 6),
    "olmo2": (4, 6),
    "bert": (4, 0),
    "roberta": (4, 0),
    "bloom": (4, 6),
    "rwkv": (4, 4),
    "gpt_neox": (4, 6),
    "granite": (4, 0),
    "gemma3": (4, 6),
    "mamba": (4, 0),
    "opt": (4, 3),
    "mpt": (4, 6),
    "cohere": (4, 6),
    "xlnet": (0, 0),
    "albert": (0, 0),
    "xlm": (4, 0),
    "jamba": (4, 4),
    "roberta-prelayernorm": (4, 6),
}


KERNELS = {"jamba": pytest.mark.newest}  # before, it needed a package of kernels


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param(k, marks=KERNELS.get(k, ())) for k in EXPECTED])
def test_what_hook_points_mean(folder_of, kind):
    alone = {}
    kept = accepted(
        names(LAYERS), lambda name: alone.update({name: read(load(folder_of(kind), name))[0]})
    )
    together = check(folder_of(kind), kept, transformers_own(folder_of(kind))[1])
    assert all(torch.equal(alone[name], together[name]) for name in kept)
    states, added = (sum(word in name for name in kept) for word in ("hidden_states", "_out"))
    assert (states, added) == EXPECTED[kind]


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(EXPECTED)))
def test_what_hook_points_mean_everywhere(folder_of, kind):
    try:
        folder = folder_of(kind)
    except Exception as error:  # many configurations need sizes of their own, or images
        pytest.skip(f"{kind} cannot be built small: {str(error)[:80]}")
    whole, states = transformers_own(folder)
    with torch.inference_mode():
        architecture = Architecture(whole, whole.config)
        trace = Trace(whole, architecture, torch.tensor([[211, 57]]), partial_model=False)
    check(
        folder,
        accepted(names(architecture.layers), lambda name: trace.find(architecture.want(name))),
        states,
    )


# --- what a model's configuration does not say --------------------------------------------------


def test_the_models_own_paths_go_before_other_names(folder_of):
    model = load(folder_of("mpt"), "blocks.1.ffn", "layers.1.ffn", "blocks.1.hook_mlp_out")
    assert [hook.path for hook in model.hooks] == [
        "blocks.1.ffn",
        "blocks.1.ffn",
        "blocks.1.ffn.down_proj",
    ]
    assert load(folder_of("mpt"), *(hook.name for hook in model.hooks)).hooks == model.hooks


def test_a_list_that_is_not_the_residual_stream_is_not_called_layers(folder_of):
    assert load(folder_of("xlm"), "attentions.1").hooks[0].transformer_lens is None
    for name in (
        "layers.1",
        "blocks.1.hook_resid_post",
    ):  # XLM has a list for attentions, one for norms, one for MLPs
        with pytest.raises(BitlensError, match=r"hook a module path, for example attentions"):
            load(folder_of("xlm"), name)


@pytest.mark.parametrize(
    "kind",
    ["llama", "bert", "roberta", "xlm-roberta", "mpnet", "esm", "opt", "gpt2", "mamba", "mpt"],
)
def test_the_longest_context_is_as_long_as_the_model_reads(folder_of, kind):
    model = load(folder_of(kind), "layers.0")
    longest = {"roberta": 125, "xlm-roberta": 125, "mpnet": 126, "esm": 125, "mamba": None}.get(
        kind, 128
    )
    assert model.longest_context() == longest
    model.hidden_states(torch.full((1, longest or 128), 50))
    assert load(folder_of("xlnet")).longest_context() is None  # it says -1


def test_padding_beyond_the_embedding_is_another_token_and_text_beyond_it_refused(folder_of):
    model = load(folder_of("llama"), "layers.1")
    ids, mask = tokens(), torch.ones(3, 7)
    mask[1, 4:] = 0
    expected = model.hidden_states(ids, mask)["layers.1"]
    found = model.hidden_states(ids.masked_fill(mask == 0, 50_000), mask)["layers.1"]
    assert torch.equal(found[mask.bool()], expected[mask.bool()])
    with pytest.raises(
        BitlensError,
        match="gives the token 50000, but the model has embeddings for 400 tokens only",
    ):
        model.hidden_states(torch.full((1, 4), 50_000))


@pytest.mark.parametrize("kind", ["llama", "fnet", "mamba", "bert"])  # FNet takes no mask
def test_padding_does_not_change_what_is_before_it(folder_of, kind):
    model = load(folder_of(kind), "layers.1")
    ids, mask = tokens(), torch.ones(3, 7)
    mask[1, 4:] = 0
    found = model.hidden_states(ids, mask)[model.hooks[0].name]
    alone = model.hidden_states(ids[1:2, :4])[model.hooks[0].name]
    assert found.shape[:2] == (3, 7)
    assert torch.allclose(found[1, :4], alone[0], atol=1e-5)


@pytest.mark.slow
def test_a_model_of_images_and_text_is_refused_in_a_sentence(folder_of):
    transformers_model = transformers.CLIPModel(tiny_config("clip"))
    folder = folder_of("llama").parent / "clip"
    transformers_model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(folder_of("llama")).save_pretrained(folder)
    for hook in ("layers.0", "hidden_states[1]", "text_model.encoder.layers.0"):
        with pytest.raises(BitlensError, match="does not run on text alone"):
            load(folder, hook)


@pytest.mark.parametrize(
    ("kind", "causal"),
    [("llama", True), ("gemma3", True), ("llava", True), ("xlnet", False), ("bert", False)],
)
def test_only_causal_models_have_a_next_token_loss(folder_of, kind, causal):
    folder = folder_of(kind)
    if not causal:
        with pytest.raises(BitlensError, match="is not a causal language model"):
            LanguageModel.load(str(folder), [], causal=True, device="cpu")
    else:
        model = LanguageModel.load(str(folder), ["layers.1"], causal=True, device="cpu")
        assert model.model(input_ids=tokens()).logits.shape == (3, 7, 400)
        assert torch.equal(read(model)[0], read(load(folder, "layers.1"))[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "lacking", "hook", "causal", "needed"),
    [
        ("llama", "embed_tokens", "layers.0", False, True),
        ("llama", "model.norm", "norm", False, True),
        ("llama", "model.norm", "layers.2", False, False),
        ("llama", "model.norm", "layers.0", True, True),
        ("llama", "lm_head", "layers.0", True, True),
        ("llama", "lm_head", "layers.0", False, False),
        ("llama", "layers.1", "layers.0", False, False),
        ("llama", "layers.1", "layers.1:input", False, True),
        ("gpt2", "wpe", "layers.0", False, True),
        ("gpt2", "lm_head", "layers.0", True, False),  # tied to the embedding
        ("bert", "token_type_embeddings", "layers.0", False, True),
        ("bert", "pooler", "layers.2", False, False),
        ("gemma3", "vision_tower", "layers.0", False, False),
        ("gemma3", "embed_tokens", "layers.0", False, True),
        ("mixtral", "layers.0.block_sparse_moe.experts.3", "layers.0", False, True),
    ],
)
def test_weights_that_are_missing_are_refused_where_they_are_needed(
    folder_of, tmp_path, kind, lacking, hook, causal, needed
):
    folder = shutil.copytree(folder_of(kind), tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if lacking not in name}
    assert len(kept) < len(weights) or (kind, lacking) in {
        ("gpt2", "lm_head"),
        ("bert", "pooler"),
    }, list(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    if needed:
        with pytest.raises(
            BitlensError, match=r"are incomplete: they lack|have other shapes than its config"
        ):
            LanguageModel.load(str(folder), [hook], device="cpu", causal=causal)
    else:
        whole = LanguageModel.load(str(folder_of(kind)), [hook], device="cpu", causal=causal)
        assert torch.equal(
            *(
                read(m)[0]
                for m in (
                    whole,
                    LanguageModel.load(str(folder), [hook], device="cpu", causal=causal),
                )
            )
        )
