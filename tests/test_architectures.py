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

# Plain; a norm after attention and MLP; BERT's norm at the end of a layer; positions that start later; the residual
# inside the modules; parallel attention and MLP; a multiplier; a vision tower; other names for the hidden states; ...
DIFFERENT = [
    "llama", "gemma2", "olmo2", "bert", "roberta", "bloom", "gpt_neox", "granite", "gemma3", "mamba", "rwkv", "opt", "mpt",
    "cohere", "xlnet", "albert", "xlm", "jamba",
]  # fmt: skip
REFUSED = {"albert"}  # shares one layer, so no list of layers


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
    """The model and what it gives at its hook points, in their order; None if they are refused."""
    try:
        model = LanguageModel.load(str(folder), list(hooks), device="cpu")
    except BitlensError as error:
        assert "\n" not in str(error)
        assert "could not be loaded" not in str(error), error
        return None
    found = model.hidden_states(tokens())
    return model, [found[hook.name] for hook in model.hooks]


def close(one, other):
    return torch.allclose(one, other, rtol=1e-4, atol=1e-4 * float(other.std()))


def check(folder):
    whole = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    whole.config.use_cache = False
    with torch.no_grad():
        states = whole(input_ids=tokens(), output_hidden_states=True).hidden_states
    accepted = {}
    for index, state in enumerate(states[: LAYERS + 1]):
        if loaded := load(folder, f"hidden_states[{index}]"):
            assert torch.equal(loaded[1][0], state), f"hidden_states[{index}]"
            assert loaded[0].hooks[0].transformers == f"hidden_states[{index}]"
            accepted[f"hidden_states[{index}]"] = loaded[1][0]
    for layer in range(LAYERS):
        for kind in ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post"):
            name = f"blocks.{layer}.{kind}"
            if loaded := load(folder, name):
                assert loaded[0].hooks[0].transformer_lens == name
                accepted[name] = loaded[1][0]
        parts = [accepted.get(f"blocks.{layer}.hook_{p}") for p in ("resid_pre", "attn_out", "mlp_out", "resid_post")]
        if parts[1] is not None and parts[2] is not None:
            assert close(parts[0] + parts[1] + parts[2], parts[3]), f"layer {layer}"
    if accepted:
        _, together = load(folder, *accepted)
        for name, value in zip(accepted, together, strict=True):
            assert torch.equal(value, accepted[name]), f"{name} alone and together"
    return accepted


@pytest.mark.parametrize("kind", DIFFERENT)
def test_what_hook_points_mean(folder_of, kind):
    assert check(folder_of(kind)) or kind in {*REFUSED, "xlnet"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(DIFFERENT)))
def test_what_hook_points_mean_everywhere(folder_of, kind):
    check(folder_of(kind))
