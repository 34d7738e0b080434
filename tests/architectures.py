"""Every architecture of transformers that can be built small from its configuration alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

LAYERS, WIDTH, VOCABULARY = 3, 32, 400
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "n_embd": WIDTH, "d_model": WIDTH, "emb_dim": WIDTH, "dim": WIDTH,
    "embedding_size": WIDTH, "num_hidden_layers": LAYERS, "n_layer": LAYERS, "n_layers": LAYERS, "num_layers": LAYERS,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "num_key_value_heads": 2, "n_head_kv": 2,
    "intermediate_size": 2 * WIDTH, "hidden_dim": 2 * WIDTH, "ffn_dim": 2 * WIDTH, "n_inner": 2 * WIDTH,
    "d_inner": 2 * WIDTH, "moe_intermediate_size": WIDTH, "shared_expert_intermediate_size": WIDTH, "d_head": 8,
    "shared_intermediate_size": WIDTH, "head_dim": 8, "rotary_dim": 4, "num_local_experts": 4, "num_experts": 4,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "q_lora_rank": 16,
    "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "qk_head_dim": 16,
    "state_size": 8, "attention_hidden_size": WIDTH, "time_step_rank": 4, "max_position_embeddings": 128,
    "n_positions": 128, "context_length": 128, "max_seq_len": 128, "num_image_tokens": 4, "mm_tokens_per_image": 4,
    "pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.2, "word_embed_proj_dim": WIDTH,
    "layer_types": None, "dtype": "float32", "image_size": 28, "patch_size": 14, "expert_layer_period": 2,
    "attn_layer_period": 2, "attn_layer_offset": 1, "layers_block_type": None, "router_jitter_noise": 0.0,
    "residual_multiplier": 0.25, "mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8,
    "mamba_chunk_size": 8, "mamba_expand": 2,
}  # fmt: skip
PARTICULAR: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]]},
    "gemma3n_text": {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "dbrx": {"d_model": WIDTH, "n_heads": 4, "n_layers": LAYERS, "vocab_size": VOCABULARY},
}  # fmt: skip


def tiny_config(kind: str) -> Any:
    """The default configuration of this model type with small sizes, those of its parts too."""
    config = transformers.CONFIG_MAPPING[kind]
    plain = config()
    return config(**{**_sizes(plain), **_parts(plain), **PARTICULAR.get(kind, {})})


def _sizes(config: Any) -> dict[str, Any]:
    """Small values for the sizes that this configuration has."""
    names = set(config.to_dict()) - set(getattr(config, "sub_configs", {}))
    latent = {"head_dim": None, "num_key_value_heads": 4} if "kv_lora_rank" in names else {}
    return {
        name: value
        for name, value in (SIZES | latent).items()
        if name in names and value is not None
    }


def _parts(config: Any) -> dict[str, Any]:
    parts = {name: getattr(config, name, None) for name in getattr(config, "sub_configs", {})}
    return {
        name: {"model_type": p.model_type, **_sizes(p)}
        for name, p in parts.items()
        if p is not None
    }


KINDS = [*dict.fromkeys([*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_MAPPING_NAMES])]


def small_model(kind: str) -> Any:
    """A random model of this type, with the head of a causal language model where there is one; skips what has none."""
    try:
        config = tiny_config(kind)
        assert not getattr(config, "is_encoder_decoder", False)
        assert config.get_text_config().num_hidden_layers <= LAYERS
        with torch.device("meta"):
            size = sum(p.numel() for p in transformers.AutoModel.from_config(config).parameters())
        assert size < 30e6, f"{size} parameters"
        torch.manual_seed(0)
        kinds: Any = (
            transformers.AutoModelForCausalLM,
            transformers.AutoModelForImageTextToText,
            transformers.AutoModel,
        )
        auto = next(kind for kind in kinds if type(config) in kind._model_mapping)
        model = auto.from_config(config).eval()
        model.config.use_cache = model.config.get_text_config().use_cache = False
        assert type(config.get_text_config()) in transformers.MODEL_MAPPING
        with torch.no_grad():
            model(input_ids=torch.tensor([[11, 57, 301]]), output_hidden_states=True)
    except Exception as error:  # many configurations need sizes of their own, or images
        pytest.skip(f"{kind} cannot be built small: {str(error)[:80]}")
    return model
