"""Published models are read from their config.json: family, size to the parameter, and refusals by name."""

from typing import Any

import pytest
from families import DECODERS

from qianyi.config.counts import parameter_count
from qianyi.config.load import load
from qianyi.errors import CheckpointError
from qianyi.export.families import family_in, family_of

LLAMA = {
    "model_type": "llama", "vocab_size": 128256, "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False, "rope_theta": 5e5,
    "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}  # fmt: skip
MISTRAL = {
    "model_type": "mistral", "vocab_size": 32000, "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5,
    "rope_theta": 1e4, "sliding_window": 4096, "hidden_act": "silu", "tie_word_embeddings": False,
}  # fmt: skip
QWEN3 = {
    "model_type": "qwen3", "vocab_size": 151936, "num_hidden_layers": 36, "hidden_size": 4096, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 12288, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6,
    "rope_theta": 1e6, "rope_scaling": None, "use_sliding_window": False, "tie_word_embeddings": False,
}  # fmt: skip
GEMMA2 = {
    "model_type": "gemma2", "vocab_size": 256000, "num_hidden_layers": 42, "hidden_size": 3584, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 256, "intermediate_size": 14336, "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
    "rope_theta": 1e4, "query_pre_attn_scalar": 256, "sliding_window": 4096, "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0, "hidden_activation": "gelu_pytorch_tanh",
}  # fmt: skip
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3", "vocab_size": 129280, "num_hidden_layers": 61, "hidden_size": 7168, "num_attention_heads": 128,
    "num_key_value_heads": 128, "intermediate_size": 18432, "max_position_embeddings": 163840, "rms_norm_eps": 1e-6,
    "rope_theta": 1e4, "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "n_group": 8,
    "topk_group": 4, "first_k_dense_replace": 3, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
    "topk_method": "noaux_tc", "norm_topk_prob": True, "moe_layer_freq": 1, "tie_word_embeddings": False,
}  # fmt: skip
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "GPT-2": (
        {"model_type": "gpt2", "vocab_size": 50257, "n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024,
         "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5},
        124_439_808,
    ),
    "OPT-6.7B": (
        {"model_type": "opt", "vocab_size": 50272, "num_hidden_layers": 32, "hidden_size": 4096, "word_embed_proj_dim": 4096,
         "num_attention_heads": 32, "ffn_dim": 16384, "max_position_embeddings": 2048, "do_layer_norm_before": True},
        6_658_473_984 - 2 * 4096,  # two rows of positions that nobody reads
    ),
    "BLOOM": (
        {"model_type": "bloom", "vocab_size": 250880, "n_layer": 70, "n_embed": 14336, "num_attention_heads": 112,
         "layer_norm_epsilon": 1e-5, "apply_residual_connection_post_layernorm": False},
        176_247_271_424,
    ),
    "Llama 3.1 8B": (LLAMA, 8_030_261_248),
    "Mistral 7B": (MISTRAL, 7_241_732_096),
    "Mixtral 8x7B": (
        MISTRAL | {"model_type": "mixtral", "sliding_window": None, "rope_theta": 1e6, "num_local_experts": 8,
                   "num_experts_per_tok": 2},
        46_702_792_704,
    ),
    "Qwen3 8B": (QWEN3, 8_190_735_360),
    "Qwen3 235B": (
        QWEN3 | {"model_type": "qwen3_moe", "num_hidden_layers": 94, "num_attention_heads": 64, "num_key_value_heads": 4,
                 "moe_intermediate_size": 1536, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True,
                 "decoder_sparse_step": 1, "mlp_only_layers": []},
        235_093_634_560,
    ),
    "Gemma 2 9B": (GEMMA2, 9_241_705_984),
    "Gemma 3 1B": (
        {"model_type": "gemma3_text", "vocab_size": 262144, "num_hidden_layers": 26, "hidden_size": 1152,
         "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "intermediate_size": 6912,
         "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "rope_local_base_freq": 10000,
         "query_pre_attn_scalar": 256, "sliding_window": 512, "sliding_window_pattern": 6,
         "hidden_activation": "gelu_pytorch_tanh"},
        999_885_952,
    ),
    "DeepSeek-V3, not stretched": (DEEPSEEK_V3, 671_026_419_200),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models(name: str) -> None:
    config, n_params = PUBLISHED[name]
    family = family_in(config)
    model = family.model_config(config)
    assert family_of(model) is family and family_of(family.model_config(family.hf_config(model))) is family
    assert parameter_count(model) == n_params


def test_each_design_is_written_as_its_own_family() -> None:
    found = {name: family_of(m).name for name, m in DECODERS.items() if name != "glm"}
    names = (
        "GPT-2",
        "OPT",
        "BLOOM",
        "Cohere",
        "Llama",
        "Qwen3",
        "Gemma 2",
        "Gemma 3",
        "Mistral",
        "Mixtral",
        "Qwen3-MoE",
        "DeepSeek-V3",
    )
    assert tuple(found.values()) == names
    with pytest.raises(CheckpointError, match=r"made of these parts: .* needs norm_at=pre"):
        family_of(DECODERS["glm"])


RECIPES = {
    "gpt3-175b": "GPT-2", "opt-175b": "OPT", "bloom-176b": "BLOOM", "palm-540b": "Cohere", "llama3-405b": "Llama",
    "mixtral-8x7b": "Mixtral", "qwen3-8b": "Qwen3", "qwen3-235b-a22b": "Qwen3-MoE", "gemma2-27b": "Gemma 2", "gemma3-27b": "Gemma 3",
    "deepseek-v3": "DeepSeek-V3",
}  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_can_be_exported(recipe: str) -> None:
    assert family_of(load(recipe).config.model).name == RECIPES[recipe]


def test_gemma_3_sees_what_it_should() -> None:
    model = family_in(PUBLISHED["Gemma 3 1B"][0]).model_config(PUBLISHED["Gemma 3 1B"][0])
    assert [i for i, local in enumerate(model.local_layers) if not local] == [5, 11, 17, 23]
    assert (model.rope_theta, model.attention.local_rope_theta, model.attention.window) == (1e6, 1e4, 512)


COHERE = {
    "model_type": "cohere", "vocab_size": 256000, "num_hidden_layers": 40, "hidden_size": 8192, "num_attention_heads": 64,
    "intermediate_size": 22528, "max_position_embeddings": 131072, "layer_norm_eps": 1e-5, "logit_scale": 0.0625,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (COHERE, r"logit_scale=0\.0625 .* only 1 or hidden_size\*\*-0\.5"),
        (DEEPSEEK_V3 | {"rope_scaling": {"type": "yarn", "factor": 40}}, "rope_type=yarn"),
        (DEEPSEEK_V3 | {"rms_norm_eps": 1e-5}, "rms_norm_eps=1e-05"),
        (DEEPSEEK_V3 | {"v_head_dim": 192}, "v_head_dim=192 .* only 128"),
        (GEMMA2 | {"layer_types": ["full_attention", *["sliding_attention"] * 41]}, r"full_attention in layers \[0\]"),
        (PUBLISHED["Qwen3 235B"][0] | {"mlp_only_layers": [0]}, r"mlp_only_layers=\[0\]"),
        (QWEN3 | {"use_sliding_window": True}, "use_sliding_window=True"),
        (PUBLISHED["OPT-6.7B"][0] | {"word_embed_proj_dim": 512}, "word_embed_proj_dim=512"),
        (PUBLISHED["OPT-6.7B"][0] | {"do_layer_norm_before": False}, "do_layer_norm_before=False"),
    ],
)
def test_what_is_not_computed_here_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        family_in(config).model_config(config)
