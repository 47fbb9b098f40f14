"""A recipe in the words of a paper: what `qianyi show` prints first."""

from qianyi.config.counts import active_parameter_count, flops_per_token, parameter_count
from qianyi.config.ramp import tokens_before
from qianyi.config.schema import Config, ModelConfig

_KINDS = {"decoder": "decoder", "encoder": "encoder", "encoder_decoder": "encoder-decoder"}
_NORMS = {
    "pre": "before each sublayer and at the end",
    "post": "after each residual connection",
    "sandwich": "before and after each sublayer and at the end",
    "deepnorm": "after each residual connection, which is scaled (DeepNorm)",
}
_POSITIONS = {
    "learned": "learned positions",
    "sinusoidal": "sinusoidal positions",
    "alibi": "scores that fall with distance (ALiBi)",
    "relative": "learned biases by distance",
}
_MLPS = {"gelu": "GELU (tanh)", "gelu_erf": "GELU", "relu": "ReLU", "swiglu": "SwiGLU", "geglu": "GeGLU"}


def summary(config: Config) -> dict[str, str]:
    """Label -> sentence."""
    return {
        "Model": ", ".join(_model(config.model)),
        "Attention": ", ".join(_attention(config.model)),
        "Feed-forward": ", ".join(_feed_forward(config.model)),
        "Size": _size(config.model),
        "Training": ", ".join(_training(config)),
        "Optimizer": ", ".join(_optimizer(config)),
        "Learning rate": ", ".join(_learning_rate(config)),
        "Initialization": _initialization(config.model),
    }


def _model(m: ModelConfig) -> list[str]:
    layers = f"{m.n_layers} layers" if not m.encoder_layers else f"{m.encoder_layers} + {m.n_layers} layers"
    norm = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}[m.norm]
    words = [f"{_KINDS[m.kind]} of {layers}, width {m.d_model:,}", f"vocabulary {m.vocab_size:,}", f"{norm} {_NORMS[m.norm_at]}"]
    words += ["attention and feed-forward in parallel"] if m.parallel else []
    words += ["normalized embedding"] if m.embedding_norm else []
    words += [
        "biases" if m.bias else "no biases",
        "output tied to the embedding" if m.tied_embeddings else "own output projection",
    ]
    return words + ([f"logits capped at {m.logit_cap:g}"] if m.logit_cap else [])


def _attention(m: ModelConfig) -> list[str]:
    a = m.attention
    words = [f"{m.n_heads} heads of {m.d_head}"]
    if m.latent:
        words.append(f"latent keys and values of {m.latent.kv_rank}, queries of {m.latent.query_rank or m.d_model}")
    elif m.kv_heads < m.n_heads:
        words.append(f"{m.kv_heads} key/value head{'s' if m.kv_heads > 1 else ''}")
    words.append(_POSITIONS.get(m.position) or f"rotary positions of base {m.rope_theta:,.0f}")
    if a.window:
        everywhere = f", every {a.global_every}. layer all" if a.global_every else ""
        words.append(f"within {a.window:,} tokens{everywhere}")
    words += ["normalized queries and keys"] if a.qk_norm else []
    return words + ([f"scores capped at {a.logit_cap:g}"] if a.logit_cap else [])


def _feed_forward(m: ModelConfig) -> list[str]:
    if m.mixture is None:
        return [f"{_MLPS[m.mlp]} of {m.d_hidden:,}"]
    moe = m.mixture
    words = [f"{moe.n_experts} experts of {m.d_expert:,} ({_MLPS[m.mlp]}), {moe.experts_per_token} per token"]
    words += [f"{moe.n_shared} shared"] if moe.n_shared else []
    words += [f"the first {moe.dense_layers} layers dense of {m.d_hidden:,}"] if moe.dense_layers else []
    words.append("dropless" if moe.capacity_factor is None else f"capacity factor {moe.capacity_factor:g}")
    return [*words, f"balanced by {'an auxiliary loss' if moe.balance == 'loss' else 'a bias'} of {moe.balance_rate:g}"]


def _size(m: ModelConfig) -> str:
    count, active = parameter_count(m), active_parameter_count(m)
    return f"{count:,} parameters ({readable(count)})" + (f", {readable(active)} per token" if active < count else "")


def _training(config: Config) -> list[str]:
    train = config.train
    tokens = tokens_before(train, train.steps)
    flops = tokens * flops_per_token(config.model, train.seq_len)
    ramp = f" (from {train.batch_ramp[0].batch_size:,})" if train.batch_ramp else ""
    words = [f"{train.steps:,} steps of {train.batch_size:,} sequences{ramp} of {train.seq_len:,} tokens"]
    words += [f"{readable(train.batch_size * train.seq_len)} tokens per step, {readable(tokens)} in all"]
    words += [f"{tokens / parameter_count(config.model):.3g} per parameter", f"{flops:.3g} model FLOPs"]
    return words if train.objective.kind == "causal" else [*words, f"objective {train.objective.kind}"]


def _optimizer(config: Config) -> list[str]:
    o = config.optimizer
    adam = f" ({o.b1:g}, {o.b2:g}, {o.eps:g})"
    moments = {"adamw": adam, "lamb": adam, "lion": f" ({o.b1:g}, {o.b2:g})"}
    name = o.kind + moments.get(o.kind, f" with momentum {o.moment_decay:g}" if o.moment_decay else "")
    power = " times the rate" if o.decay_power == 2 else ""
    decay = f"decay {o.weight_decay:g}{power} of matrices" if o.weight_decay else "no decay"
    return [name, decay, f"gradients clipped at {o.clip_norm:g}" if o.clip_norm else "no clipping"]


def _learning_rate(config: Config) -> list[str]:
    s, steps, rate = config.schedule, config.train.steps, config.optimizer.learning_rate
    words = [f"{rate:g} after {s.warmup_steps:,} steps of warm-up" if s.warmup_steps else f"{rate:g} from the start"]
    if s.scale_rule != "none":
        words.append(f"found for {s.base_batch_size:,} sequences and scaled by the {s.scale_rule} rule")
    match s.kind:
        case "constant":
            return [*words, "constant"]
        case "rsqrt":
            return [*words, f"then with 1 / sqrt(step) from step {max(s.hold_steps, s.warmup_steps, 1):,} on"]
        case "wsd":
            start = steps - round(s.decay_fraction * steps)
            return [*words, f"constant until step {start:,}, then linearly to {s.final_ratio * rate:g}"]
        case kind:
            return [*words, f"{kind} to {s.final_ratio * rate:g} at step {steps:,}"]


def _initialization(m: ModelConfig) -> str:
    if m.init == "fan_in":
        return "normal, deviation 1 / sqrt(inputs)"
    residual = f", projections into the residual stream {m.init_std / (2 * m.n_layers) ** 0.5:.3g}" if m.init == "scaled" else ""
    return f"normal, deviation {m.init_std:g}{residual}"


def readable(count: float) -> str:
    """1234567 -> 1.23M."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.2f}{unit}" if count < 100 * size else f"{count / size:.1f}{unit}"
    return f"{count:.0f}"
