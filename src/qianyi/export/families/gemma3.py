"""Gemma 3 without images (Team Gemma 2025): `Gemma3ForCausalLM`. Local layers have rotary frequencies of their own, never stretched."""

from typing import Any

from qianyi.config.model import AttentionConfig
from qianyi.config.schema import ModelConfig
from qianyi.errors import CheckpointError
from qianyi.export.families.family import Family, Json, need, require
from qianyi.export.families.gemma2 import attention_settings, gemma_keys, gemma_settings, table
from qianyi.export.families.parts import rope_parameters, rope_settings

_GLOBAL, _LOCAL = "full_attention", "sliding_attention"


def model_config(hf: Json) -> ModelConfig:
    require(hf, "attn_logit_softcapping", None)  # `transformers` reads it and does not compute it
    every_layer, local_theta = _rope(hf)
    attention = attention_settings(hf, global_every=hf.get("sliding_window_pattern", 6))
    if "window" in attention:
        attention["local_rope_theta"] = local_theta
    return ModelConfig(**gemma_settings(hf), **every_layer, attention=AttentionConfig(**attention, qk_norm=True))


def _rope(hf: Json) -> tuple[dict[str, Any], float | None]:
    """Settings of rotary positions, and the base of local layers where it differs."""
    rope = hf.get("rope_parameters")
    if not rope:
        return rope_settings(hf, theta=1e6), float(hf.get("rope_local_base_freq", 10_000.0))
    everywhere = rope_settings({"rope_parameters": need(rope, _GLOBAL)})
    local = rope_settings({"rope_parameters": need(rope, _LOCAL)})
    if local == everywhere:
        return everywhere, None
    if local["rope_scaling"].kind != "none":
        raise CheckpointError("rotary positions of sliding_attention are stretched; only those of full_attention may be")
    return everywhere, local["rope_theta"]


def hf_config(m: ModelConfig) -> Json:
    everywhere, theta = rope_parameters(m), m.attention.local_rope_theta
    local = everywhere if theta is None else {"rope_type": "default", "rope_theta": theta}
    keys = gemma_keys(m, "gemma3_text", "Gemma3ForCausalLM")
    return keys | {"attn_logit_softcapping": None, "rope_parameters": {_GLOBAL: everywhere, _LOCAL: local}}


FAMILY = Family(
    name="Gemma 3",
    model_type="gemma3_text",
    table=table,
    model_config=model_config,
    hf_config=hf_config,
    base="model.",
    ignored=("lm_head.weight", "*.rotary_emb.inv_freq"),
)
