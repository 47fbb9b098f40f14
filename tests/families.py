"""A small model of each family."""

from models import SEQ_LEN, VOCAB

from qianyi.config.model import AttentionConfig, LatentConfig, MoEConfig
from qianyi.config.schema import ModelConfig

SMALL = ModelConfig(vocab_size=VOCAB, n_layers=3, d_model=64, n_heads=8, d_ff=96, max_seq_len=SEQ_LEN, dtype="float32")


def variant(of: ModelConfig = SMALL, **changes: object) -> ModelConfig:
    return ModelConfig(**{**{name: getattr(of, name) for name in ModelConfig.model_fields}, **changes})


LLAMA = variant(norm="rmsnorm", mlp="swiglu", position="rope", bias=False, n_kv_heads=4, tied_embeddings=False)
GEMMA = variant(LLAMA, mlp="geglu", head_dim=8, norm_at="sandwich", scale_embeddings=True, tied_embeddings=True, norm_eps=1e-6)
EXPERTS = MoEConfig(n_experts=8, experts_per_token=2)

DECODERS = {
    "gpt2": SMALL,
    "opt": variant(mlp="relu"),
    "bloom": variant(position="alibi", embedding_norm=True, d_ff=None),
    "palm": variant(
        norm="layernorm", mlp="swiglu", position="rope", bias=False, parallel=True, n_kv_heads=1, init="fan_in", scale_logits=True
    ),
    "glm": variant(mlp="geglu", position="rope", norm_at="deepnorm", embedding_norm=True),
    "llama": LLAMA,
    "qwen3": variant(LLAMA, head_dim=16, attention=AttentionConfig(qk_norm=True)),
    "gemma2": variant(GEMMA, logit_cap=3.0, attention=AttentionConfig(logit_cap=2.0, scale=0.2, window=6, global_every=2)),
    "gemma3": variant(
        GEMMA, attention=AttentionConfig(qk_norm=True, scale=0.2, window=6, global_every=3, local_rope_theta=100.0), rope_theta=1e6
    ),
    "mistral": variant(LLAMA, attention=AttentionConfig(window=7)),
    "mixtral": variant(LLAMA, moe=EXPERTS),
    "qwen3 moe": variant(
        LLAMA, head_dim=16, attention=AttentionConfig(qk_norm=True),
        moe=MoEConfig(n_experts=8, experts_per_token=3, d_ff=40, normalize=False),
    ),
    "deepseek": variant(
        LLAMA,
        n_kv_heads=None,
        norm_eps=1e-6,
        attention=AttentionConfig(latent=LatentConfig(kv_rank=24, query_rank=32, rope_dim=4)),
        moe=MoEConfig(
            n_experts=8, experts_per_token=2, n_shared=1, d_ff=32, dense_layers=1,
            score="sigmoid", scale=2.5, groups=4, groups_chosen=2, balance="bias", balance_rate=0.001,
        ),
    ),
}  # fmt: skip
BERT = variant(
    kind="encoder",
    mlp="gelu_erf",
    norm_at="post",
    embedding_norm=True,
    segments=2,
    sentence_head=True,
    init="normal",
    norm_eps=1e-12,
)
T5 = variant(
    kind="encoder_decoder", norm="rmsnorm", mlp="relu", bias=False, position="relative", scale_logits=True, init="fan_in",
    attention=AttentionConfig(scale=1.0), n_encoder_layers=2, norm_eps=1e-6,
)  # fmt: skip
OTHERS = {
    "bert": BERT,
    "t5": T5,
    "t5 v1.1": variant(T5, mlp="geglu", tied_embeddings=False, scale_logits=False, head_dim=12),
    "vaswani": variant(
        kind="encoder_decoder", mlp="relu", norm_at="post", position="sinusoidal", scale_embeddings=True, init="fan_in"
    ),
}
FAMILIES = {**DECODERS, **OTHERS}
