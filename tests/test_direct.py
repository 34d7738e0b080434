"""What a direction does to the next-token logits: against the derivative of each model's own tail,
written out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor

from bitlens.bits import Codes, PackedBits
from bitlens.causal.direct import DirectEffect, direct_effect
from bitlens.errors import BitlensError
from bitlens.hidden import LanguageModel
from bitlens.seeding import generator

WIDTH, LAYERS = 32, 3
USUAL: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}
GEMMA = USUAL | {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16}
GPT2 = {
    "n_embd": WIDTH,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_positions": 128,
    "initializer_range": 0.2,
}
OPT = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "ffn_dim": 64,
    "word_embed_proj_dim": 16,
}
CAP = 3.0

Tail = Callable[[Any, Tensor], Tensor]


def normed(m: Any, h: Tensor) -> Tensor:
    """The tail of most models: final norm and head."""
    return m.lm_head(m.model.norm(h))


def opt_tail(m: Any, h: Tensor) -> Tensor:
    decoder = m.model.decoder
    return m.lm_head(decoder.project_out(decoder.final_layer_norm(h)))


CAPPED = GEMMA | {"final_logit_softcapping": CAP}
COHERE = USUAL | {"logit_scale": 0.3, "num_key_value_heads": 2}
GRANITE = USUAL | {"logits_scaling": 8.0, "num_key_value_heads": 2}
MODELS: dict[str, tuple[Any, dict[str, Any], Tail]] = {
    "llama": (tf.LlamaConfig, USUAL, normed),
    "gemma3": (tf.Gemma3TextConfig, GEMMA, normed),
    "gemma2": (tf.Gemma2Config, CAPPED, lambda m, h: CAP * torch.tanh(normed(m, h) / CAP)),
    "cohere": (tf.CohereConfig, COHERE, lambda m, h: normed(m, h) * 0.3),
    "granite": (tf.GraniteConfig, GRANITE, lambda m, h: normed(m, h) / 8),
    "gpt2": (tf.GPT2Config, GPT2, lambda m, h: m.lm_head(m.transformer.ln_f(h))),
    "opt": (tf.OPTConfig, OPT, opt_tail),
    "phi": (tf.PhiConfig, USUAL, lambda m, h: m.lm_head(m.model.final_layernorm(h))),
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory, tokenizer) -> Callable[[str], Path]:
    """A saved random model whose norms and biases are random, too."""
    saved: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in saved:
            saved[kind] = tmp_path_factory.mktemp(kind)
            config, settings, _ = MODELS[kind]
            torch.manual_seed(0)
            ids = {
                "vocab_size": len(tokenizer),
                "pad_token_id": 2,
                "bos_token_id": 0,
                "eos_token_id": 1,
            }
            model = tf.AutoModelForCausalLM.from_config(config(**settings, **ids))
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim == 1:
                        parameter.add_(torch.randn(parameter.shape) / 2)
            model.save_pretrained(saved[kind])
            tokenizer.save_pretrained(saved[kind])
        return saved[kind]

    return make


def codes_of(folder: Path, model: Path, tokenizer: Any, hook: str) -> Codes:
    ids = torch.tensor(
        tokenizer("The old sailor watched a quiet river in the morning. " * 20)["input_ids"]
    )
    columns = {
        "token": ids.int(),
        "document": torch.arange(len(ids)) // 50,
        "position": torch.zeros(len(ids)).int(),
    }
    about = {"model": str(model), "hook": {"module": hook}}
    return Codes.write(
        folder / "codes", [(PackedBits.pack(torch.ones(len(ids), 4)), columns)], 4, about
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_the_effect_is_the_derivative_of_the_models_own_logits(
    kind, folder_of, tokenizer, tmp_path
):
    effect = direct_effect(codes_of(tmp_path, folder_of(kind), tokenizer, "layers.1"))
    directions = torch.randn(5, WIDTH, generator=generator("directions"))
    network: Any = effect.model.model
    jacobian = torch.autograd.functional.jacobian(
        lambda h: MODELS[kind][2](network, h), effect.state
    )
    torch.testing.assert_close(effect(directions), directions @ jacobian.T, rtol=1e-4, atol=1e-5)


def test_the_state_is_the_mean_of_what_the_last_block_gives(folder_of, tokenizer, tmp_path):
    codes = codes_of(tmp_path, folder_of("llama"), tokenizer, "layers.0")
    effect = direct_effect(codes)
    model = LanguageModel.load(
        str(folder_of("llama")), [f"layers.{LAYERS - 1}"], device="cpu", causal=True
    )
    documents = [codes.token[codes.document == i].long()[None] for i in codes.document.unique()]
    chosen = torch.linspace(0, len(documents) - 1, min(16, len(documents))).long()
    states = torch.cat(
        [model.hidden_states(documents[i])[f"layers.{LAYERS - 1}"][0] for i in chosen]
    )
    torch.testing.assert_close(effect.state, states.mean(0), rtol=1e-4, atol=1e-5)


def test_what_is_written_after_the_final_norm_meets_the_head_alone(folder_of, tokenizer, tmp_path):
    effect = direct_effect(
        codes_of(tmp_path, folder_of("gemma3"), tokenizer, f"hidden_states[{LAYERS}]")
    )
    directions = torch.randn(3, WIDTH, generator=generator("directions"))
    network: Any = effect.model.model
    torch.testing.assert_close(
        effect(directions), directions @ network.lm_head.weight.T, rtol=1e-4, atol=1e-5
    )


def test_what_has_no_direct_path_is_refused(folder_of, tokenizer, tmp_path):
    llama = folder_of("llama")
    with pytest.raises(
        BitlensError, match=r"layers.1.mlp:input is not added to the residual stream"
    ):
        direct_effect(codes_of(tmp_path, llama, tokenizer, "layers.1.mlp:input"))
    model = LanguageModel.load(str(llama), ["layers.2"], device="cpu", causal=True)
    with pytest.raises(
        BitlensError, match=r"writes states of width 7, but the head of .* reads 32"
    ):
        DirectEffect(model, [[5, 6, 7]])(torch.ones(1, 7))


def test_a_model_that_is_not_there_is_named(tokenizer, tmp_path):
    with pytest.raises(BitlensError, match=r"gone of the language model behind .* is gone"):
        direct_effect(codes_of(tmp_path, tmp_path / "gone", tokenizer, "layers.1"))
