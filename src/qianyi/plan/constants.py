"""What no data sheet says: efficiencies and overheads, fitted on published runs by `qianyi.plan.calibrate` and kept in
`data/constants.yaml`.

A constant belongs to a generation of chips, to a software stack, or to all. Each has a prior: what is known of it without the runs, and how
well. Fitting moves it only as far as the runs ask, so a generation with few runs keeps what its neighbours and the prior say.
"""

from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

import yaml

from qianyi.plan.case import Number, Numbers
from qianyi.plan.chips import Chip
from qianyi.plan.stack import Stack


@dataclass(frozen=True, kw_only=True)
class Constants(Numbers):
    """Factors are without unit."""

    matmul_efficiency: Number
    """Of the peak, of a large product in bfloat16."""
    eight_bit_efficiency: Number
    """Of the 8-bit peak, of a large product."""
    matmul_depth: Number
    """Inner length at which half of that is reached."""
    wave_loss: Number
    """How much of the last, partly filled wave of tiles is lost: 0 nothing, 1 all."""
    attention_efficiency: Number
    """Of the bfloat16 peak, of a fused attention kernel, forward."""
    attention_pace: Number
    """Time of a stack's fused attention, relative to that."""
    attention_width: Number
    """Head width at which half of that is reached."""
    score_passes: Number
    """Times that attention without a fused kernel reads or writes its scores, forward."""
    memory_efficiency: Number
    """Of the memory's bandwidth, of elementwise operations."""
    elementwise: Number
    """Bytes that they move, relative to a program that fuses all it can."""
    routing_passes: Number
    """Times that tokens are read or written on their way to experts, forward."""
    eight_bit_passes: Number
    """Times that 8-bit operands are read or written to be scaled and cast."""
    near_efficiency: Number
    """Of the bandwidth inside a domain."""
    far_efficiency: Number
    """Of the bandwidth between domains."""
    near_latency_seconds: Number
    """Of a step of a ring, inside a domain."""
    far_latency_seconds: Number
    """Of a step of a ring, between domains."""
    tensor_exposed: Number
    """Share of tensor-parallel communication that no computation hides."""
    expert_exposed: Number
    """Share of the exchange of tokens that no computation hides."""
    stage_exposed: Number
    """Share of the messages between stages that no computation hides."""
    contention: Number
    """What is lost of the time in which weights and gradients travel and the chip computes, for both use its cores and its memory: 0, only
    the longer one counts; 1, one after the other."""
    layer_seconds: Number
    """Overhead of a layer, for one forward pass of one microbatch."""
    moe_layer_seconds: Number
    """What a layer with experts adds to it: many small kernels, and counts that the host waits for."""
    step_seconds: Number
    """Overhead of a step."""
    jitter: Number
    """Slowdown for each doubling of the number of chips beyond one host."""
    runtime_bytes: Number
    """Memory of the driver, communicators and libraries."""
    allocation: Number
    """Memory reserved, relative to what the model above counts: fragments and short-lived buffers."""
    chip_pace: Number
    """Time of this chip relative to what its numbers say: how far power and cooling let it keep its clock."""
    stack_pace: Number
    """Time of this stack relative to the model above."""
    lineage_pace: Number
    """Time of a lineage's stacks relative to the model above."""
    pair_pace: Number
    """What remains: of this stack on this generation at this precision."""


Table = dict[str, float]
"""Value by `name` or `name@scope`."""


@dataclass(frozen=True)
class Prior:
    """What is known of a constant before any run: lognormal."""

    scope: str
    """`all`, `generation`, `stack`, `group` (stack, generation and precision), `network`, or a flag of the stack."""
    mean: float
    spread: float
    """Standard deviation of the logarithm."""
    special: tuple[tuple[str, float], ...] = ()
    """Other means, for scopes that contain a word."""

    def of(self, key: str) -> tuple[float, float]:
        _, _, scope = key.partition("@")
        return next((mean for word, mean in self.special if word in scope), self.mean), self.spread


PRIORS = {
    "matmul_efficiency": Prior("generation", 0.80, 0.10, (("tpu", 0.90), ("ampere", 0.87), ("volta", 0.85), ("cdna", 0.51))),
    "eight_bit_efficiency": Prior("bits", 0.65, 0.10, (("4", 0.45), ("tpu", 0.75))),
    "matmul_depth": Prior("generation", 150.0, 0.45),
    "wave_loss": Prior("network", 0.3, 0.7),
    "attention_efficiency": Prior("generation", 0.55, 0.20, (("ampere", 0.60), ("tpu", 0.50))),
    "attention_pace": Prior("lineage", 1.0, 0.15),
    "attention_width": Prior("network", 32.0, 0.5),
    "score_passes": Prior("lineage", 4.0, 0.4),
    "memory_efficiency": Prior("generation", 0.80, 0.05),
    "elementwise": Prior("lineage", 1.3, 0.4),
    "routing_passes": Prior("lineage", 10.0, 0.7),
    "eight_bit_passes": Prior("cast", 2.0, 0.5, (("/4", 4.0),)),
    "near_efficiency": Prior("network", 0.75, 0.10),
    "far_efficiency": Prior("stack", 0.75, 0.45),
    "near_latency_seconds": Prior("network", 1e-5, 0.7),
    "far_latency_seconds": Prior("network", 1e-5, 0.7),
    "tensor_exposed": Prior("tensor", 0.9, 0.15, (("hides", 0.5),)),
    "expert_exposed": Prior("lineage", 0.7, 0.4),
    "stage_exposed": Prior("all", 0.8, 0.4),
    "contention": Prior("overlap", 0.8, 0.5, (("hides", 0.2),)),
    "layer_seconds": Prior("lineage", 2e-5, 1.0),
    "moe_layer_seconds": Prior("host", 6e-4, 0.5, (("capacity", 3e-4), ("x86", 8e-4), ("grace", 4e-4))),
    "step_seconds": Prior("lineage", 5e-3, 0.5),
    "jitter": Prior("network", 6e-3, 0.6, (("torus", 0.025),)),
    "runtime_bytes": Prior("lineage", 2.5e9, 0.3, (("torus", 0.4e9), ("deepspeed", 4.5e9))),
    "allocation": Prior("lineage", 1.15, 0.08, (("torus", 1.05),)),
    "chip_pace": Prior("chip", 1.0, 0.07),
    "stack_pace": Prior("stack", 1.0, 0.12),
    "lineage_pace": Prior("lineage", 1.0, 0.10),
    "pair_pace": Prior("group", 1.0, 0.03),
}


def scope_key(name: str, stack: Stack, chip: Chip, group: str) -> str:
    """The entry of a table that a run uses."""
    network = "torus" if chip.torus_axes else "switch"
    scopes = {
        "all": "",
        "chip": chip.name,
        "generation": chip.generation,
        "bits": f"{chip.generation}/{group.rsplit('/', maxsplit=1)[-1]}",
        "cast": f"{network}/{group.rsplit('/', maxsplit=1)[-1]}",
        "stack": stack.like or stack.name,
        # Kernels are launched by the host, whose processor is another beside Grace chips.
        "host": f"{stack.name}/{'grace' if chip.name.startswith('gb') else 'x86'}",
        "lineage": f"{stack.lineage}/{network}",
        "group": group,
        "tensor": f"{network}-{'hides' if stack.tensor_overlaps else 'waits'}",
        "overlap": f"{network}-{'hides' if stack.overlaps else 'waits'}",
        "network": network,
    }
    scope = scopes[PRIORS[name].scope]
    return f"{name}@{scope}" if scope else name


def constants(stack: Stack, chip: Chip, precision: str, own: Table | None = None) -> Constants:
    """Of a stack on a chip; where no run was fitted, what the prior says. `own`: entries that replace those that ship."""
    group = group_of(stack, chip, precision)
    values: dict[str, float] = {}
    for name, prior in PRIORS.items():
        key = scope_key(name, stack, chip, group)
        values[name] = (own or {}).get(key, fitted().get(key, prior.of(key)[0]))
    return possible(Constants(**values))


def possible(k: Constants) -> Constants:
    """Efficiencies of less than 1: a smooth bound, so that a fit does not stop at an edge."""

    def bounded(value: Number) -> Number:
        return value / (1 + value**SHARPNESS) ** (1 / SHARPNESS)

    names = (
        "matmul_efficiency",
        "eight_bit_efficiency",
        "attention_efficiency",
        "memory_efficiency",
        "near_efficiency",
        "far_efficiency",
    )
    return replace(k, **{name: bounded(getattr(k, name)) for name in names})


SHARPNESS = 12
"""Of the bound: 0.9 becomes 0.88, 0.75 stays within 0.3%."""


def group_of(stack: Stack, chip: Chip, precision: str) -> str:
    """Runs that share a residual: one stack on one generation of chips at one precision."""
    bits = {"bf16": "16", "fp16": "16", "nvfp4": "4"}.get(precision, "8")
    return f"{stack.like or stack.name}/{chip.generation}/{bits}"


@cache
def fitted() -> Table:
    """Written by `make calibrate`."""
    return yaml.safe_load((files("qianyi.plan.data") / "constants.yaml").read_text())["constants"]
