"""A recipe made small enough for this machine, with its structure kept: what a certificate is about."""

import math

from qianyi.config.model import AttentionConfig, MoEConfig
from qianyi.config.optimizer import OptimizerConfig
from qianyi.config.schema import Config, LayoutConfig, ModelConfig

HEAD_DIM = 8
MAX_BATCH_ROWS = 4
"""Rows per device and microbatch at most."""


def shrink(config: Config, layout: LayoutConfig) -> Config:
    """The recipe at a size that one core computes in seconds.

    Kept: the kinds of norm, feed-forward, position, bias and tying; how many query heads share a key/value head, windows, latent
    vectors; how many experts are chosen and shared, groups, dropping and balancing; recomputation, precision, z-loss, document mask;
    optimizer and schedule; that layers do not divide evenly over stages. Made small: width, depth, vocabulary, sequence, batch.
    """
    model = _shrink_model(config, layout)
    parts = 2 * layout.context * layout.model  # every device has at least a token of each half
    group = model.moe.group_tokens if model.mixture and model.moe.capacity_factor is not None else 1
    seq_len = 2 * math.lcm(parts, 2 * layout.context * group)
    accumulation = max(min(config.train.accumulation, 2), layout.stage)
    shards = layout.batch_shards * accumulation
    train = config.train.model_copy(
        update={
            "seq_len": seq_len,
            "objective": config.train.objective.model_copy(
                update={"target_len": seq_len if config.model.kind == "encoder_decoder" else None}
            ),
            "batch_size": 2 * shards,
            "accumulation": accumulation,
            "batch_ramp": (),
            "steps": 100,
            "loss_chunk_tokens": 3 * seq_len // 4,  # chunks that do not divide the tokens, as real ones may not
        }
    )
    # The first steps are looked at: they must move.
    schedule = config.schedule.model_copy(
        update={"warmup_steps": 0, "hold_steps": 0, "scale_rule": "none", "base_batch_size": None}
    )
    optimizer = _smooth(config.optimizer).model_copy(update={"learning_rate": 1e-2})
    position = {"max_seq_len": seq_len}
    return config.model_copy(
        update={
            "model": model.model_copy(update=position),
            "layout": layout,
            "train": train,
            "schedule": schedule,
            "optimizer": optimizer,
        }
    )


def _smooth(o: OptimizerConfig) -> OptimizerConfig:
    """The optimizer, but none that magnifies the rounding of gradients: each iteration of Muon multiplies small singular values by 3.4, so
    there is one; Lion's update is a sign, which flips with the last digit, so AdamW stands in for it."""
    if o.kind == "lion":
        return OptimizerConfig(b1=o.b1, b2=o.b2, weight_decay=o.weight_decay, decay_power=o.decay_power, clip_norm=o.clip_norm)
    return o.model_copy(update={"newton_schulz_steps": 1}) if o.kind == "muon" else o


def _shrink_model(config: Config, layout: LayoutConfig) -> ModelConfig:
    m = config.model
    shared = m.n_heads // m.kv_heads
    kv_heads = 1 if m.kv_heads == 1 else layout.model * (1 if shared > 1 else 2)
    n_heads = 2 * layout.model if m.kv_heads == 1 else kv_heads * shared
    width = 16 * math.lcm(layout.data * layout.context, layout.model)
    virtual = layout.stage * layout.chunks
    uneven = m.n_blocks % virtual != 0
    n_dense = min(m.n_layers - m.n_blocks, 1)
    n_blocks = max(2, virtual + 1) if uneven else 2 * virtual
    return m.model_copy(
        update={
            "vocab_size": 64 * layout.model,
            "n_layers": n_dense + n_blocks,
            "n_encoder_layers": None if m.n_encoder_layers is None else 3,
            "d_model": width,
            "n_heads": n_heads,
            "n_kv_heads": None if m.n_kv_heads is None else kv_heads,
            "head_dim": HEAD_DIM,
            "d_ff": 24 * layout.model,
            "moe": _shrink_experts(m.moe, layout, n_dense),
            "attention": _shrink_attention(m.attention, layout),
            "mup_base_width": m.mup_base_width and max(1, width * m.mup_base_width // m.d_model),
            "mup_base_head_dim": m.mup_base_head_dim and max(1, HEAD_DIM * m.mup_base_head_dim // m.d_head),
        }
    )


def _shrink_experts(moe: MoEConfig, layout: LayoutConfig, n_dense: int) -> MoEConfig:
    if not moe.n_experts:
        return moe
    fewest = max(2 * moe.experts_per_token, layout.expert, 4)
    groups = min(moe.groups, 2)
    n_experts = min(moe.n_experts, fewest + -fewest % math.lcm(layout.expert, groups))
    fewer = {"n_experts": n_experts, "dense_layers": n_dense, "groups": groups, "groups_chosen": min(moe.groups_chosen, groups)}
    return moe.model_copy(update=fewer | {"group_tokens": 8, "d_ff": None if moe.d_ff is None else 16 * layout.model})


def _shrink_attention(a: AttentionConfig, layout: LayoutConfig) -> AttentionConfig:
    """Every kind of layer stays: of a window, local ones, and global ones where there are."""
    rank = 8 * layout.data * layout.context
    latent = {
        "kv_rank": rank if a.latent.kv_rank else 0,
        "query_rank": 2 * rank if a.latent.query_rank else 0,
        "rope_dim": HEAD_DIM,
    }
    return a.model_copy(
        update={
            "window": None if a.window is None else 5,
            "global_every": min(a.global_every, 2),
            "kernel": "auto",  # a CPU has no fused one
            "latent": a.latent.model_copy(update=latent),
        }
    )
