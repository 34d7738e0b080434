"""Every architecture of transformers that can be built small from its configuration alone."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

LAYERS, WIDTH, VOCABULARY = 3, 32, 400


def _each(value: Any, names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), value)


SIZES: dict[str, Any] = {
    **_each(VOCABULARY, "vocab_size"),
    **_each(LAYERS, "num_hidden_layers n_layer n_layers num_layers"),
    **_each(WIDTH, "hidden_size n_embd d_model emb_dim dim embedding_size word_embed_proj_dim"),
    **_each(WIDTH, "attention_hidden_size moe_intermediate_size shared_intermediate_size"),
    **_each(WIDTH, "shared_expert_intermediate_size"),
    **_each(2 * WIDTH, "intermediate_size hidden_dim ffn_dim n_inner d_inner mamba_d_ssm"),
    **_each(128, "max_position_embeddings n_positions context_length max_seq_len"),
    **_each(4, "num_attention_heads n_head n_heads num_heads mamba_n_heads time_step_rank"),
    **_each(4, "num_local_experts num_experts n_routed_experts num_image_tokens"),
    **_each(4, "mm_tokens_per_image rotary_dim"),
    **_each(2, "num_key_value_heads n_head_kv num_experts_per_tok mamba_expand pad_token_id"),
    **_each(2, "expert_layer_period attn_layer_period"),
    **_each(1, "n_group topk_group attn_layer_offset eos_token_id"),
    "bos_token_id": 0,
    "router_jitter_noise": 0.0,
    **_each(8, "d_head head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim state_size"),
    **_each(8, "mamba_d_state mamba_chunk_size"),
    **_each(16, "q_lora_rank kv_lora_rank qk_head_dim mamba_d_head"),
    **_each(4, "linear_num_value_heads linear_num_key_heads"),
    **_each(8, "linear_key_head_dim linear_value_head_dim"),
    **_each(None, "layer_types layers_block_type"),
    "dtype": "float32",
    "image_size": 28,
    "patch_size": 14,
    "initializer_range": 0.2,
    "residual_multiplier": 0.25,
}
PARTICULAR: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]]},
    "gemma3n_text": {
        "num_kv_shared_layers": 0,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
    },
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "vits": {"upsample_initial_channel": 32},
    "dbrx": {"d_model": WIDTH, "n_heads": 4, "n_layers": LAYERS, "vocab_size": VOCABULARY},
}


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
    """A random model of this type, with the head of a causal language model where there is one.

    Raises one of many kinds of errors for what cannot be built small or run on text: such
    configurations need sizes of their own, or images.
    """
    config = tiny_config(kind)
    assert not getattr(config, "is_encoder_decoder", False)
    assert config.get_text_config().num_hidden_layers <= LAYERS
    assert type(config.get_text_config()) in transformers.MODEL_MAPPING
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
    with torch.no_grad():
        model(input_ids=torch.tensor([[11, 57, 301]]), output_hidden_states=True)
    return model
