"""What the files of Llama and its many heirs share: names of tensors, keys of config.json, rotary positions.

Linear layers are stored output first.
"""

from typing import Any

from qianyi.config.model import RopeScalingConfig
from qianyi.config.schema import ModelConfig
from qianyi.errors import CheckpointError
from qianyi.export.families.family import Json, need
from qianyi.export.names import SAME, Change, Entry, Table

LAYER = "model.layers.{layer}."


def outer_rows(m: ModelConfig, change: Change = SAME) -> Table:
    """What is in no layer; `change` is of norm scales, here and below."""
    head = () if m.tied_embeddings else (Entry("lm_head.weight", ("head/tokens",), "V D -> V D"),)
    return (
        Entry("model.embed_tokens.weight", ("embedding/tokens",), "V D -> V D"),
        Entry("model.norm.weight", ("final_norm/scale",), "D -> D", (change,)),
        *head,
    )


def norm_rows(names: dict[str, str], change: Change = SAME, stack: str = "blocks", first_layer: int = 0) -> Table:
    """Norms of a layer: their name to ours."""
    return tuple(
        Entry(f"{LAYER}{theirs}.weight", (f"{stack}/{ours}",), "D -> D", (change,), first_layer) for theirs, ours in names.items()
    )


PRE_NORMS = {"input_layernorm": "attn_norm/scale", "post_attention_layernorm": "mlp_norm/scale"}


def attention_rows(m: ModelConfig, rotary: Change = SAME, norms: Change = SAME) -> Table:
    """`rotary` is of queries and keys."""
    h, ours = LAYER + "self_attn.", "blocks/attn/"
    rows = (
        Entry(h + "q_proj.weight", (ours + "query",), "D H K -> (H K) D", (rotary,)),
        Entry(h + "k_proj.weight", (ours + "key",), "D G K -> (G K) D", (rotary,)),
        Entry(h + "v_proj.weight", (ours + "value",), "D G K -> (G K) D"),
        Entry(h + "o_proj.weight", (ours + "out",), "H K D -> D (H K)"),
    )
    if not m.attention.qk_norm:
        return rows
    return (
        *rows,
        Entry(h + "q_norm.weight", (ours + "query_norm",), "K -> K", (norms,)),
        Entry(h + "k_norm.weight", (ours + "key_norm",), "K -> K", (norms,)),
    )


def mlp_rows(theirs: str = "mlp", stack: str = "blocks", first_layer: int = 0) -> Table:
    """A feed-forward layer with a gate."""
    h, ours = f"{LAYER}{theirs}.", f"{stack}/mlp/"
    return (
        Entry(h + "gate_proj.weight", (ours + "gate",), "D F -> F D", first_layer=first_layer),
        Entry(h + "up_proj.weight", (ours + "up",), "D F -> F D", first_layer=first_layer),
        Entry(h + "down_proj.weight", (ours + "down",), "F D -> D F", first_layer=first_layer),
    )


def expert_rows(
    theirs: str = "mlp", names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"), first_layer: int = 0
) -> Table:
    """A router and experts with a gate. In files each expert has tensors of its own, though `transformers` 5 computes with one for all."""
    h, ours, (gate, up, down) = f"{LAYER}{theirs}.", "blocks/moe/", names
    return (
        Entry(h + "gate.weight", (ours + "router",), "D E -> E D", first_layer=first_layer),
        Entry(f"{h}experts.{{expert}}.{gate}.weight", (ours + "experts_gate",), "D F -> F D", first_layer=first_layer),
        Entry(f"{h}experts.{{expert}}.{up}.weight", (ours + "experts_up",), "D F -> F D", first_layer=first_layer),
        Entry(f"{h}experts.{{expert}}.{down}.weight", (ours + "experts_down",), "F D -> D F", first_layer=first_layer),
    )


def llama_settings(hf: Json, *, norm_eps: float = 1e-6, tied: bool = False) -> dict[str, Any]:
    """Settings of a `ModelConfig` but for positions; `norm_eps` and `tied` are the defaults of `transformers` for the family."""
    return {
        "norm": "rmsnorm",
        "mlp": "swiglu",
        "position": "rope",
        "bias": False,
        "vocab_size": need(hf, "vocab_size"),
        "n_layers": need(hf, "num_hidden_layers"),
        "d_model": need(hf, "hidden_size"),
        "n_heads": need(hf, "num_attention_heads"),
        "n_kv_heads": hf.get("num_key_value_heads"),
        "head_dim": hf.get("head_dim"),
        "d_ff": need(hf, "intermediate_size"),
        "max_seq_len": need(hf, "max_position_embeddings"),
        "norm_eps": hf.get("rms_norm_eps", norm_eps),
        "tied_embeddings": hf.get("tie_word_embeddings", tied),
        "init_std": hf.get("initializer_range", 0.02),
    }


def llama_keys(m: ModelConfig, model_type: str, architecture: str) -> Json:
    """The same as keys of config.json, with positions that are the same in all layers."""
    return {
        "model_type": model_type,
        "architectures": [architecture],
        "vocab_size": m.vocab_size,
        "num_hidden_layers": m.n_layers,
        "hidden_size": m.d_model,
        "num_attention_heads": m.n_heads,
        "num_key_value_heads": m.kv_heads,
        "head_dim": m.d_head,
        "intermediate_size": m.d_hidden,
        "max_position_embeddings": m.max_seq_len,
        "hidden_act": "silu",
        "rms_norm_eps": m.norm_eps,
        "rope_parameters": rope_parameters(m),
        "attention_bias": False,
        "tie_word_embeddings": m.tied_embeddings,
        "initializer_range": m.init_std,
    }


def rope_settings(hf: Json, theta: float = 10_000.0) -> dict[str, Any]:
    """`rope_parameters` of transformers 5, or `rope_theta` and `rope_scaling` before; `theta` where neither says it."""
    rope: Json = hf.get("rope_parameters") or {**(hf.get("rope_scaling") or {}), "rope_theta": hf.get("rope_theta", theta)}
    return {"rope_theta": float(need(rope, "rope_theta")), "rope_scaling": rope_scaling(rope)}


def rope_scaling(rope: Json) -> RopeScalingConfig:
    """How rotary frequencies are stretched.

    Raises:
        CheckpointError: in a way that is not computed here.
    """
    match rope.get("rope_type", rope.get("type", "default")):
        case "default":
            return RopeScalingConfig()
        case "linear":
            return RopeScalingConfig(kind="linear", factor=need(rope, "factor"))
        case "llama3":
            keys = {key: need(rope, key) for key in ("factor", "low_freq_factor", "high_freq_factor")}
            return RopeScalingConfig(kind="llama3", **keys, original_max_seq_len=need(rope, "original_max_position_embeddings"))
        case other:
            raise CheckpointError(f"rotary positions of rope_type={other} are not supported, only default, linear or llama3")


def rope_parameters(m: ModelConfig) -> Json:
    s = m.rope_scaling
    rope: Json = {"rope_type": "default" if s.kind == "none" else s.kind, "rope_theta": m.rope_theta}
    if s.kind != "none":
        rope["factor"] = s.factor
    if s.kind == "llama3":
        rope |= {"low_freq_factor": s.low_freq_factor, "high_freq_factor": s.high_freq_factor}
        rope["original_max_position_embeddings"] = s.original_max_seq_len
    return rope
