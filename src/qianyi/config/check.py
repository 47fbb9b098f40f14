"""Rules that involve several parts of a config, checked before anything is allocated.

Each rule yields problems; all of them are reported together, with the numbers and the nearest values that work.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from qianyi.config.check_optimizer import optimizer, scaling, schedule
from qianyi.config.mixture import mixture
from qianyi.config.objective import fits_model, lengths_fit, without_effect
from qianyi.config.schema import AXES, BATCH_AXES, Config, LayoutConfig, ModelConfig
from qianyi.errors import ConfigError, ResourceError

ACTIVATIONS = (
    "block_in",
    "attn_norm",
    "query",
    "key",
    "value",
    "attn_out",
    "attn_proj",
    "mlp_norm",
    "mlp_up",
    "mlp_gate",
    "mlp_hidden",
    "mlp_out",
    "expert_tokens",
    "expert_out",
)
"""Activations of a block that `model.remat` may name. `block_in` is what the block begins with, which is kept unless it is moved: all else
can be computed from it."""
MATMUL_ACTIVATIONS = ("query", "key", "value", "attn_out", "attn_proj", "mlp_up", "mlp_gate", "expert_tokens", "expert_out")
"""What `model.remat=matmuls` keeps: with these, the backward pass repeats no matmul, no attention and no all-to-all of experts."""


def check(config: Config, n_devices: int | None = None) -> None:
    """Refuse what cannot run.

    Args:
        config: the recipe.
        n_devices: devices of the run; None where they are not known.

    Raises:
        ConfigError: all problems, one line each.
        ResourceError: there are fewer devices than the layout needs.
    """
    rules = (
        *(_parts, _pairs, _kernel, _tensor_axis, _sharding, _stages, _context, _experts, _without_effect),
        *(fits_model, lengths_fit, without_effect, _batch, _batch_ramp, _noise_scale, _lengths),
        *(schedule, scaling, optimizer, _remat, _sources, mixture, _platform),
    )
    problems = [problem for rule in rules for problem in rule(config)]
    if problems:
        raise ConfigError("\n".join(problems))
    if n_devices is not None:
        _check_devices(config, n_devices)


def _tensor_axis(config: Config) -> Iterator[str]:
    m, axis = config.model, config.layout.model
    sizes = {"n_heads": m.n_heads, "n_kv_heads": m.kv_heads, "d_ff": m.d_hidden, "moe.d_ff": m.moe.d_ff}
    for name, size in sizes.items():
        if size and size % axis and (name, size) != ("n_kv_heads", 1):
            yield f"layout.model={axis} does not divide model.{name}={size}; {_divisors(size, axis)}"
    if m.vocab_size % axis:
        padded = m.vocab_size + -m.vocab_size % axis
        yield f"layout.model={axis} does not divide model.vocab_size={m.vocab_size}; pad it to {padded}"
    length = config.train.seq_len // config.layout.context
    if length % axis:
        split = f" / layout.context={config.layout.context}" if config.layout.context > 1 else ""
        yield (
            f"layout.model={axis} does not divide train.seq_len={config.train.seq_len}{split} (sequence parallelism); "
            f"use {_multiples(config.train.seq_len, axis * config.layout.context)}"
        )


def _sharding(config: Config) -> Iterator[str]:
    layout, width = config.layout, config.model.d_model
    parts = layout.data * layout.context
    if layout.zero and width % parts:
        product = (
            f"layout.data {layout.data} x layout.context {layout.context} = {parts}"
            if layout.context > 1
            else f"layout.data={parts}"
        )
        yield (
            f"{product} does not divide model.d_model={width}, along which layout.zero={layout.zero} shards parameters; "
            f"{_divisors(width, parts)}, or use layout.zero=0"
        )


def _stages(config: Config) -> Iterator[str]:
    layout, train = config.layout, config.train
    virtual = layout.stage * layout.chunks
    if layout.stage == 1:
        return
    if virtual > (n_layers := config.model.n_blocks):
        chunks = max(1, n_layers // layout.stage)
        fits = f"layout.chunks={chunks}" if layout.stage <= n_layers else f"layout.stage={n_layers}"
        yield (
            f"layout.stage {layout.stage} x layout.chunks {layout.chunks} = {virtual} is more than {_stack(config.model)}: "
            f"some would have no layer; {fits} would do"
        )
    if train.accumulation < layout.stage:
        yield (
            f"train.accumulation={train.accumulation} microbatches do not fill layout.stage={layout.stage} stages; "
            f"use train.accumulation={layout.stage} or more, {4 * layout.stage} to idle little"
        )
    if layout.chunks > 1 and layout.schedule == "gpipe":
        yield "layout.chunks > 1 is interleaved 1F1B; use layout.schedule=1f1b"
    if layout.zero == 2:
        yield "layout.zero=2 in a pipeline would reduce gradients for every microbatch; use layout.zero=1 (once per step) or 3"
    if config.model.matmul == "fp8_delayed":
        yield "model.matmul=fp8_delayed keeps magnitudes that a pipeline does not collect from its stages; use model.matmul=fp8"
    if layout.exchange == "ring" and layout.context > 1:
        yield "layout.exchange=ring does not go with layout.stage > 1: stages take turns, a ring needs all; use layout.exchange=gather"


def _context(config: Config) -> Iterator[str]:
    n, length = config.layout.context, config.train.seq_len
    if n > 1 and length % (2 * n):
        yield (
            f"layout.context={n} splits a sequence into {2 * n} parts (two for each device, to share causal work evenly), which do "
            f"not divide train.seq_len={length}; use {_multiples(length, 2 * n)}"
        )


def _experts(config: Config) -> Iterator[str]:
    layout, moe = config.layout, config.model.mixture
    if moe is None:
        if layout.expert > 1:
            use = layout.data * layout.expert
            yield f"layout.expert={layout.expert}, but model.moe.n_experts=0: there are no experts; use layout.data={use}"
        return
    if moe.n_experts % layout.expert:
        near = _divisors(moe.n_experts, layout.expert)
        yield f"layout.expert={layout.expert} does not divide model.moe.n_experts={moe.n_experts}; {near}"
    span = config.train.seq_len // (2 * layout.context if layout.context > 1 else 1)
    if moe.capacity_factor is not None and span % moe.group_tokens:
        yield (
            f"model.moe.group_tokens={moe.group_tokens} does not divide the {span} consecutive tokens of a sequence on a device "
            f"(train.seq_len={config.train.seq_len}, layout.context={layout.context}); {_divisors(span, moe.group_tokens)}"
        )


def _without_effect(config: Config) -> Iterator[str]:
    """What would change nothing in the program is a mistake, not a preference."""
    layout = config.layout
    if layout.zero != 3 and layout.data * layout.context == 1:
        yield f"layout.zero={layout.zero} changes nothing with layout.data=1 and layout.context=1; leave it out"
    if layout.zero == 1 and layout.gather == "layer":
        yield "layout.zero=1 reduces gradients once per step; layout.gather=layer with sharded gradients is layout.zero=2"
    if layout.zero == 2 and layout.gather == "step":
        yield "layout.zero=2 reduces gradients layer by layer; layout.gather=step with whole gradients is layout.zero=1"
    if layout.stage == 1 and (layout.schedule != "1f1b" or layout.chunks > 1):
        name = "schedule" if layout.schedule != "1f1b" else "chunks"
        yield f"layout.{name}={getattr(layout, name)} changes nothing with layout.stage=1; leave it out or set layout.stage"
    if layout.context == 1 and layout.exchange != "auto":
        yield f"layout.exchange={layout.exchange} changes nothing with layout.context=1; leave it out or set layout.context"


def _stack(m: ModelConfig) -> str:
    return f"model.n_layers={m.n_layers}" + (
        f" - model.moe.dense_layers={m.n_layers - m.n_blocks}" if m.n_blocks < m.n_layers else ""
    )


def _parts(config: Config) -> Iterator[str]:
    """Parts of a model that do not go together, or would change nothing."""
    m, a = config.model, config.model.attention
    if m.kind != "encoder":
        for name, off in (("mlm_head", True), ("sentence_head", False), ("segments", 0)):
            if getattr(m, name) != off:
                yield f"model.{name} is for model.kind=encoder, not {m.kind}"
    if m.kind == "encoder" and not m.mlm_head:
        yield "model.mlm_head=false leaves no logits to train: it is for models from files, whose hidden states are used"
    if m.kind != "encoder_decoder" and m.n_encoder_layers is not None:
        yield f"model.n_encoder_layers={m.n_encoder_layers} is for model.kind=encoder_decoder, not {m.kind}"
    if m.kind != "decoder" and a.window is not None:
        yield f"model.attention.window={a.window} looks back; model.kind={m.kind} looks both ways"
    if m.kind == "encoder_decoder" and (m.mixture or m.latent or m.parallel):
        yield "model.kind=encoder_decoder goes with neither model.moe, model.attention.latent nor model.parallel"
    if a.window is None and (a.global_every or a.local_rope_theta):
        yield "model.attention.global_every and local_rope_theta change nothing without model.attention.window"
    if a.local_rope_theta and m.position != "rope":
        yield f"model.attention.local_rope_theta changes nothing with model.position={m.position}"
    if m.latent and (m.position != "rope" or m.bias or a.qk_norm or m.kv_heads != m.n_heads):
        yield "model.attention.latent goes with position=rope, bias=false, qk_norm=false and as many n_kv_heads as n_heads"
    if m.moe.n_experts == 0 and m.moe.dense_layers:
        yield "model.moe.dense_layers changes nothing with model.moe.n_experts=0"
    if a.window and m.moe.n_experts and m.moe.dense_layers:
        yield "model.attention.window does not go with model.moe.dense_layers"


def _pairs(config: Config) -> Iterator[str]:
    """Families on layouts: what cannot be had, by name."""
    m, layout, train = config.model, config.layout, config.train
    if layout.stage > 1 and m.kind == "encoder_decoder":
        yield "layout.stage > 1 splits one stack of layers; model.kind=encoder_decoder has two; use layout.data, model or replica"
    if layout.stage > 1 and m.position == "relative":
        yield "layout.stage > 1 does not go with model.position=relative, whose table all layers share; use layout.data, model or replica"
    if layout.context > 1 and m.kind != "decoder":
        yield f"layout.context > 1 splits causal attention; model.kind={m.kind} looks both ways; use layout.model, which splits heads"
    if layout.context > 1 and m.position == "relative":
        yield "layout.context > 1 does not go with model.position=relative; use layout.model, which splits heads"
    parts = layout.data * layout.context
    if layout.zero and m.latent:
        for name, rank in (("kv_rank", m.latent.kv_rank), ("query_rank", m.latent.query_rank)):
            if rank % parts:
                yield (
                    f"layout.data x layout.context = {parts} does not divide model.attention.latent.{name}={rank}, along which "
                    f"layout.zero={layout.zero} shards; {_divisors(rank, parts)}, or use layout.zero=0"
                )
    if m.position == "sinusoidal" and m.d_model % 2:
        yield f"model.position=sinusoidal needs an even model.d_model, not {m.d_model}"
    if train.document_mask and m.kind != "decoder":
        yield f"train.document_mask is for packed sequences of a decoder; batches of model.kind={m.kind} say themselves what is padding"


def _kernel(config: Config) -> Iterator[str]:
    """What no platform's fused attention can do."""
    position, objective, context = config.model.position, config.train.objective.kind, config.layout.context
    reasons = {
        f"model.position={position}, which adds to scores": position in {"alibi", "relative"},
        "train.objective.kind=prefix, which looks ahead": objective == "prefix",
        f"layout.context={context}, which merges parts": context > 1,
    }
    for reason, there in reasons.items():
        if config.model.attention.kernel == "fused" and there:
            yield f"model.attention.kernel=fused does not go with {reason}; use model.attention.kernel=auto"


def _batch(config: Config) -> Iterator[str]:
    layout, train = config.layout, config.train
    parts = layout.batch_shards * train.accumulation
    if train.batch_size % parts:
        yield (
            f"train.batch_size={train.batch_size} does not split into {_product(layout, BATCH_AXES)} x train.accumulation "
            f"{train.accumulation} = {parts} equal parts; use {_multiples(train.batch_size, parts)}"
        )


def _batch_ramp(config: Config) -> Iterator[str]:
    """The first stage that does not fit."""
    train, stages = config.train, config.layout.stage
    sizes = [*(stage.batch_size for stage in train.batch_ramp), train.batch_size]
    microbatch, rest = divmod(train.batch_size, train.accumulation)
    for n, (size, following) in enumerate(pairwise(sizes)):
        key = f"train.batch_ramp.{n}.batch_size={size}"
        if size >= following:
            name = "train.batch_size" if n + 2 == len(sizes) else f"train.batch_ramp.{n + 1}.batch_size"
            yield f"{key} is not less than {name}={following}, which follows it; train.batch_ramp=[] has no ramp"
            return
        if rest == 0 and size % microbatch:
            yield (
                f"{key} is no whole number of microbatches of train.batch_size {train.batch_size} / train.accumulation "
                f"{train.accumulation} = {microbatch} sequences; use {_multiples(size, microbatch)}"
            )
            return
        if rest == 0 and size < stages * microbatch <= train.batch_size:
            yield (
                f"{key} is {size // microbatch} microbatches of {microbatch} sequences, which do not fill layout.stage={stages} "
                f"stages; use {stages * microbatch} or more, or raise train.accumulation"
            )
            return


def _noise_scale(config: Config) -> Iterator[str]:
    train, stages = config.train, config.layout.stage
    if not train.noise_scale:
        return
    if stages > 1:
        yield f"train.noise_scale: with layout.stage={stages} no gradient of a single microbatch exists; use layout.stage=1 or leave it out"
    if train.accumulation == 1:
        yield (
            "train.noise_scale compares the gradients of microbatches with that of the batch, and train.accumulation=1 has but one; "
            "use train.accumulation=2 or more"
        )
    elif train.batch_ramp and train.batch_ramp[0].batch_size == train.batch_size // train.accumulation:
        yield (
            f"train.noise_scale needs two microbatches, and train.batch_ramp.0.batch_size={train.batch_ramp[0].batch_size} is one; "
            f"use train.accumulation={2 * train.accumulation}"
        )


def _lengths(config: Config) -> Iterator[str]:
    if config.train.seq_len > config.model.max_seq_len:
        yield f"train.seq_len={config.train.seq_len} is longer than model.max_seq_len={config.model.max_seq_len}"
    size = config.data.tokenizer_vocab_size
    if size is not None and size > config.model.vocab_size:
        yield f"data.tokenizer_vocab_size={size} is larger than model.vocab_size={config.model.vocab_size}"


def _remat(config: Config) -> Iterator[str]:
    if not isinstance(config.model.remat, str):
        for name in config.model.remat:
            if name not in ACTIVATIONS:
                yield f"model.remat names `{name}`; the activations are {', '.join(ACTIVATIONS)}"


def _sources(config: Config) -> Iterator[str]:
    names = [source.name for source in config.data.sources]
    for name in sorted({n for n in names if names.count(n) > 1}):
        yield f"data.sources has two sources named `{name}`"
    weighted = [source.name for source in config.data.sources if source.weight is not None]
    if weighted and len(weighted) < len(names):
        yield f"data.sources: {', '.join(sorted(set(names) - set(weighted)))} has no weight, others have; weigh all or none"


def _platform(config: Config) -> Iterator[str]:
    if config.run.virtual_devices and config.run.platform not in {"cpu", "auto"}:
        yield f"run.virtual_devices simulates devices on a CPU; run.platform is {config.run.platform}"


def _check_devices(config: Config, found: int) -> None:
    layout = config.layout
    needed = layout.n_devices
    if found == needed:
        return
    message = (
        f"{_product(layout, AXES)} = {needed} "
        f"{'device' if needed == 1 else 'devices'}, but {found} {'is' if found == 1 else 'are'} here; {_other_layout(layout, found)}"
    )
    if config.run.platform in {"cpu", "auto"}:
        message += f", or simulate {needed} on a CPU with run.platform=cpu run.virtual_devices={needed}"
    raise (ResourceError if found < needed else ConfigError)(message)


def _other_layout(layout: LayoutConfig, found: int) -> str:
    """The nearest layout for so many devices: `data` changes, and others where they must."""
    left, values = found, dict[str, int]()
    for axis in ("model", "expert", "context", "stage", "replica"):
        values[axis] = math.gcd(layout.sizes[axis], left)
        left //= values[axis]
    values["data"] = left
    changed = [f"layout.{axis}={values[axis]}" for axis, size in layout.sizes.items() if values[axis] != size]
    return f"set {' '.join(changed)} to use {'it' if found == 1 else f'all {found}'}"


def _product(layout: LayoutConfig, axes: Sequence[str]) -> str:
    return " x ".join(f"layout.{axis} {layout.sizes[axis]}" for axis in axes if layout.sizes[axis] > 1) or "one device"


def _divisors(size: int, near: int) -> str:
    small = [n for n in range(1, math.isqrt(size) + 1) if size % n == 0]
    divisors = {*small, *(size // n for n in small)}
    nearest = sorted(sorted(divisors, key=lambda n: (abs(n - near), n))[:3])
    return f"{', '.join(map(str, nearest))} would"


def _multiples(size: int, of: int) -> str:
    """The multiples on both sides of a size."""
    below = size // of * of
    return f"{below} or {below + of}" if below else str(of)
