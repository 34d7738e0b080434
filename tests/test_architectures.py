"""What hook points mean, for every architecture of transformers that can be built small.

Four invariants: `hidden_states[i]` is transformers' own; resid_pre + attn_out + mlp_out = resid_post; a hook point read
together with others is what it is alone; a name for which that does not hold is refused in a sentence.
"""

from __future__ import annotations

import functools

import pytest
import torch
import transformers

from architectures import KINDS, LAYERS, small_model
from bitlens.errors import BitlensError
from bitlens.hidden import LanguageModel
from bitlens.hidden.hooks import Architecture, Trace


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
    blocks = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post", "hook_normalized_resid_post")
    return [f"hidden_states[{i}]" for i in range(layers + 1)] + [
        f"blocks.{i}.{k}" for i in range(layers) for k in blocks
    ]


def accepted(of, call):
    """The names for which the call is not refused; a refusal is one sentence."""
    kept = []
    for name in of:
        try:
            call(name)
            kept.append(name)
        except BitlensError as error:
            assert "\n" not in str(error)
            assert "could not be loaded" not in str(error), error
    return kept


def close(one, other):
    return torch.allclose(one, other, rtol=1e-4, atol=1e-4 * float(other.std()))


def transformers_own(folder):
    whole = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    whole.config.use_cache = False
    with torch.no_grad():
        return whole, getattr(whole(input_ids=tokens(), output_hidden_states=True), "hidden_states", None) or ()


def check(folder, names, states):
    """Every name means what it says, and the same alone as with all others."""
    if not names:
        return {}
    model = load(folder, *names)
    together = dict(zip(names, read(model), strict=True))
    for name, hook in zip(names, list(model.hooks), strict=True):
        assert name in hook.names().values()
        model.hooks = [hook]
        assert torch.equal(read(model)[0], together[name]), f"{name} alone and together"
    for index, state in enumerate(states):
        assert torch.equal(together.get(f"hidden_states[{index}]", state), state), f"hidden_states[{index}]"
    for layer in range(LAYERS):
        pre, attention, mlp, post = (
            together.get(f"blocks.{layer}.hook_{kind}") for kind in ("resid_pre", "attn_out", "mlp_out", "resid_post")
        )
        if attention is not None and mlp is not None:
            assert close(pre + attention + mlp, post), f"layer {layer}"
    return together


# What is not refused: all of transformers' hidden states, what attention and MLP add.
EXPECTED = {
    "llama": (4, 6), "gemma2": (4, 6), "olmo2": (4, 6), "bert": (4, 0), "roberta": (4, 0), "bloom": (4, 6), "rwkv": (4, 4),
    "gpt_neox": (4, 6), "granite": (4, 0), "gemma3": (4, 6), "mamba": (4, 0), "opt": (4, 3), "mpt": (4, 6), "cohere": (4, 6),
    "xlnet": (0, 0), "albert": (0, 0), "xlm": (4, 0), "jamba": (4, 4),
}  # fmt: skip


@pytest.mark.parametrize("kind", EXPECTED)
def test_what_hook_points_mean(folder_of, kind):
    alone = {}
    kept = accepted(names(LAYERS), lambda name: alone.update({name: read(load(folder_of(kind), name))[0]}))
    together = check(folder_of(kind), kept, transformers_own(folder_of(kind))[1])
    assert all(torch.equal(alone[name], together[name]) for name in kept)
    states, added = (sum(word in name for name in kept) for word in ("hidden_states", "_out"))
    assert (states, added) == EXPECTED[kind]


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(EXPECTED)))
def test_what_hook_points_mean_everywhere(folder_of, kind):
    folder = folder_of(kind)
    whole, states = transformers_own(folder)
    with torch.inference_mode():
        architecture = Architecture(whole, whole.config)
        trace = Trace(whole, architecture, torch.tensor([[211, 57]]), partial=False)
    check(folder, accepted(names(architecture.layers), lambda name: trace.find(architecture.want(name))), states)
