"""What a layout leaves on a device and what its weights make it send: from the declarations, without a device.

The bytes of weights and gradients are exact (tests compare them with arrays and with the compiled program). What activations send is the
formula of each method, for the layers of one stage.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from qianyi.config.schema import Config
from qianyi.config.stages import layers_of_virtual_stages
from qianyi.model.param import Param, Tree, is_param, is_stacked, map_params
from qianyi.parallel.collectives import axes_of
from qianyi.parallel.mesh import abstract_mesh
from qianyi.parallel.rules import SHARDING_AXES
from qianyi.train.muon import is_orthogonalized, plan
from qianyi.train.state import abstract_opt_state, stored_params
from qianyi.train.weights import gradient_specs, late_parts, param_specs

FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Held:
    """Bytes per device."""

    parameters: int
    gradients: int
    optimizer: int
    weights_in_use: int
    """Whole weights in the type of computation, where they are made whole before the first microbatch."""


@dataclass(frozen=True)
class Sends:
    """What a device sends per step, by the ring algorithms."""

    what: str
    axes: str
    bytes_per_device: int


def held(config: Config) -> Held:
    """What stays on the largest device during a step, without activations."""
    stored, reduced, late = param_specs(config), gradient_specs(config), late_parts(config)
    parameters = sum(_shard_size(p, spec, config) * _stored_bytes(p, config) for p, spec, _ in _leaves(config, stored))
    state = jax.tree.leaves(abstract_opt_state(config, abstract_mesh(config.layout)))
    optimizer = sum(math.prod(a.sharding.shard_shape(a.shape)) for a in state if a.ndim)
    gradients = in_use = 0
    for (p, spec, part), (_, to, _) in zip(_leaves(config, stored), _leaves(config, reduced), strict=True):
        whole = _whole_size(p, spec, config)
        gradients += whole if part in late else _shard_size(p, to, config)
        in_use += whole * _compute_bytes(p, config) if part in late else 0
    return Held(parameters, FLOAT32_BYTES * gradients, FLOAT32_BYTES * optimizer, in_use)


def sends(config: Config) -> list[Sends]:
    """By method."""
    return [s for s in (*_of_weights(config), *_of_activations(config), *_of_optimizer(config)) if s.bytes_per_device]


def _of_weights(config: Config) -> list[Sends]:
    layout, late, reduced = config.layout, late_parts(config), gradient_specs(config)
    n = layout.data * layout.context
    gathered = scattered = reduced_bytes = refreshed = 0.0
    for (p, at, part), (_, to, _) in zip(_leaves(config, param_specs(config)), _leaves(config, reduced), strict=True):
        whole, shard = _whole_size(p, at, config), _shard_size(p, to, config)
        times = 1 if part in late else config.train.accumulation
        reductions = config.train.accumulation if config.train.noise_scale else times
        sharded = bool(set(axes_of(to)) & set(SHARDING_AXES))
        if sharded:
            # Blocks gathered where they are used are gathered again for the backward pass.
            uses = times * (2 if is_stacked(part) and part not in late else 1)
            travels = min(_compute_bytes(p, config), _stored_bytes(p, config))
            gathered += uses * whole * travels * (n - 1) / n if layout.zero == 3 else 0
            refreshed += whole * _stored_bytes(p, config) * (n - 1) / n if layout.zero < 3 else 0
            scattered += reductions * whole * _reduced_bytes(p, config) * (n - 1) / n
        copies = math.prod(size for axis, size in config.layout.sizes.items() if axis not in axes_of(to))
        reduced_bytes += reductions * 2 * shard * _reduced_bytes(p, config) * (copies - 1) / copies
    over = " x ".join(axis for axis in SHARDING_AXES if config.layout.sizes[axis] > 1)
    return [
        Sends("weights gathered", over, round(gathered)),
        Sends("gradients reduced and scattered", over, round(scattered)),
        Sends("gradients summed over copies", "all axes that copy", round(reduced_bytes)),
        Sends("updated weights gathered", over, round(refreshed)),
    ]


def _of_activations(config: Config) -> list[Sends]:
    m, layout, train = config.model, config.layout, config.train
    element_bytes = 2 if m.dtype == "bfloat16" else 4
    tokens = train.batch_size * train.seq_len // (layout.batch_shards * layout.context)
    layers = max(sum(layers_of_virtual_stages(config)[s :: layout.stage]) for s in range(layout.stage))
    stream = tokens * m.d_model * element_bytes
    # Two gathers and two scatters a layer forward; backward the same and the two gathers again (Korthikanti et al. 2022).
    tensor = layers * 10 * stream * (layout.model - 1) / layout.model
    head = 4 * stream * (layout.model - 1) / layout.model
    keys_values = 2 * tokens * m.kv_heads // layout.model * m.d_head * element_bytes
    # Forward the keys and values; backward those and their gradients, which are float32 and make one more hop.
    ring = layers * (layout.context - 1) * (2 * keys_values + keys_values * 4 // element_bytes)
    ring += layers * keys_values * 4 // element_bytes if layout.context > 1 else 0
    pipeline = 2 * layout.chunks * stream // layout.model if layout.stage > 1 else 0
    out = [
        Sends("residual stream between tensor-parallel regions", "model", round(tensor + head)),
        Sends("keys and values", "context", ring),
        Sends("activations and gradients to neighbours", "stage", pipeline),
    ]
    if m.mixture and layout.expert > 1:
        spread = layout.expert if m.mixture.capacity_factor is None else m.mixture.experts_per_token * m.mixture.capacity_factor
        # To experts and back, forward, backward and (to experts) recomputed.
        out.append(
            Sends(
                "tokens to experts and back", "expert", round(5 * layers * stream * spread * (layout.expert - 1) / layout.expert)
            )
        )
    return out


def _of_optimizer(config: Config) -> list[Sends]:
    if config.optimizer.kind != "muon":
        return []  # norms and means alone: a few KiB
    sizes, sent = config.layout.sizes, 0
    for p, spec, _ in _leaves(config, gradient_specs(config)):
        if is_orthogonalized(p):
            part = NamedSharding(abstract_mesh(config.layout), spec).shard_shape(p.shape)
            sent += plan(p, part, spec, sizes).bytes_sent(config.optimizer.newton_schulz_steps)
    return [Sends("matrices to be orthogonalized", "all but replica and stage", sent)]


def _leaves(config: Config, specs: Tree) -> list[tuple[Param, P, str]]:
    """Every parameter with its spec and the part of the model that it is in."""
    found: list[tuple[Param, P, str]] = []
    for name, part in stored_params(config).items():
        pairs: Any = map_params(lambda p, spec: (p, spec), part, specs[name])
        leaves = jax.tree.leaves(pairs, is_leaf=lambda x: isinstance(x, tuple) and is_param(x[0]))
        found += [(p, spec, name) for p, spec in leaves]
    return found


def _shard_size(p: Param, spec: P, config: Config) -> int:
    return p.size // math.prod(config.layout.sizes[axis] for axis in axes_of(spec))


def _whole_size(p: Param, spec: P, config: Config) -> int:
    """Of the weight as a device uses it: shards over `data` and `context` put together."""
    return p.size // math.prod(config.layout.sizes[axis] for axis in axes_of(spec) if axis not in SHARDING_AXES)


def _compute_bytes(p: Param, config: Config) -> int:
    return 2 if p.kind == "matrix" and config.model.dtype == "bfloat16" else FLOAT32_BYTES


def _stored_bytes(p: Param, config: Config) -> int:
    return 2 if p.kind == "matrix" and config.train.param_dtype == "bfloat16" else FLOAT32_BYTES


def _reduced_bytes(p: Param, config: Config) -> int:
    return 2 if p.kind == "matrix" and config.train.reduce_dtype == "bfloat16" else FLOAT32_BYTES
