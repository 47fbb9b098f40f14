"""The certificate: the same small recipe on one device and on a layout computes the same.

Two parts. In float32, losses, every gradient, every update and a few steps of training agree to what float32 rounds. In the recipe's own
precision the layout is no further from the float32 result than one device is: the drift is rounding, not a fault.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np

from qianyi.config.check import check
from qianyi.config.schema import Config, LayoutConfig, ModelConfig
from qianyi.program.collectives import Collective
from qianyi.verify.compare import STEPS, HostTree, Leaf, Outcome, Runner, compare_trees, norm
from qianyi.verify.shrink import shrink

GRADIENT_RTOL = 1e-5
"""Of losses, gradients and the first update: float32 sums of other order differ by about 1e-6."""
TRAINING_RTOL = 1e-4
"""Of the change over all steps, into which every step's rounding goes."""
FLOOR = 1e-2
"""A leaf smaller than this share of the whole tree is measured against that share."""
DRIFT_RATIO = 3.0
"""In the recipe's precision: error of the layout over that of one device, both against float32. Two roundings of equal size differ by
a factor of about sqrt(2); a fault of parallelism makes errors of the size of the values, a hundred times that in bfloat16."""


@dataclass(frozen=True)
class Check:
    """One comparison."""

    name: str
    error: float
    limit: float
    worst: str
    """The leaf or step with the largest error."""

    @property
    def passed(self) -> bool:
        return bool(self.error <= self.limit)  # False for NaN


@dataclass(frozen=True)
class Certificate:
    """What was found."""

    layout: LayoutConfig
    small: Config
    """The recipe that was run."""
    checks: list[Check]
    leaves: list[Leaf]
    """Error of every gradient, the largest first."""
    collectives: list[Collective]
    """Of the compiled training step of the small recipe."""

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        return {
            "verdict": "equal" if self.passed else "different",
            "layout": self.layout.model_dump(),
            "checks": [{**asdict(c), "passed": c.passed} for c in self.checks],
            "worst_leaf": asdict(self.leaves[0]),
            "collectives": [asdict(c) for c in self.collectives],
            "gradients": [asdict(leaf) for leaf in self.leaves],
            "recipe": self.small.model_dump(mode="json", exclude={"data", "run", "checkpoint"}),
            "jax": jax.__version__,
        }


def certify(config: Config, layout: LayoutConfig, say: Callable[[str], None] = lambda _: None) -> Certificate:
    """Run the recipe, shrunk, on one device and on `layout`, and compare.

    Args:
        config: the user's recipe.
        layout: the layout to certify.
        say: told what is being done.

    Raises:
        ConfigError: the recipe does not go with the layout.
    """
    small = shrink(config, layout)
    check(small)
    say("one device, float32")
    alone = Runner(_exact(small, LayoutConfig()))
    eps = _smooth_eps(small, alone.gradients())
    reference = alone.train(eps)
    say(f"{layout.words}, float32")
    sharded = Runner(_exact(small, layout))
    ours = sharded.train(eps)
    leaves = compare_trees(ours.gradients, reference.gradients, FLOOR)
    checks = [
        *_exact_checks(ours, reference),
        Check("gradients", leaves[0].error, GRADIENT_RTOL, leaves[0].name),
        _change_check("first update", ours.updates, reference.updates, reference.initial, GRADIENT_RTOL),
        _change_check(f"change over {STEPS} steps", ours.change, reference.change, reference.initial, TRAINING_RTOL),
    ]
    if small != _exact(small, layout):
        say(f"both, {_precision(small)}")
        sharded = Runner(small)
        checks.append(_drift_check(small, sharded, alone))
    return Certificate(layout, small, checks, leaves, sharded.collectives())


def _exact(config: Config, layout: LayoutConfig) -> Config:
    """The recipe in float32 throughout."""
    model = config.model.model_copy(update={"dtype": "float32", "matmul": "native"})
    train = config.train.model_copy(update={"param_dtype": "float32", "reduce_dtype": "float32"})
    return config.model_copy(update={"layout": layout, "model": model, "train": train})


def _precision(config: Config) -> str:
    """In words: `bfloat16`, `bfloat16 and fp8`."""
    parts = [config.model.dtype, *([config.model.matmul] if config.model.matmul != "native" else [])]
    stored = [f"{config.train.param_dtype} parameters"] if config.train.param_dtype != "float32" else []
    reduced = [f"{config.train.reduce_dtype} reductions"] if config.train.reduce_dtype != "float32" else []
    return " and ".join([*parts, *stored, *reduced])


def _smooth_eps(config: Config, gradients: HostTree) -> float:
    """The first update of Adam, LAMB and Adafactor is the sign of each element, which makes +-1 of rounding where a gradient is near zero.
    With an epsilon of the gradient's size it is proportional instead, and errors stay what they are."""
    size = sum(a.size for a in jax.tree.leaves(gradients))
    return max(norm(gradients) / size**0.5, config.optimizer.eps)


def _exact_checks(ours: Outcome, reference: Outcome) -> list[Check]:
    scale = abs(reference.losses["loss"])
    errors = {name: abs(ours.losses[name] - value) / (abs(value) or scale) for name, value in reference.losses.items()}
    steps = {f"step {n + 1}": abs(a - b) / abs(b) for n, (a, b) in enumerate(zip(ours.training, reference.training, strict=True))}
    return [
        _worst("losses and gradient norm", errors, GRADIENT_RTOL),
        _worst("loss of each step", steps, GRADIENT_RTOL),
    ]


def _worst(name: str, errors: dict[str, float], limit: float) -> Check:
    worst = max(errors, key=lambda key: errors[key] if np.isfinite(errors[key]) else np.inf)
    return Check(name, errors[worst], limit, worst)


def _change_check(name: str, ours: HostTree, reference: HostTree, of: HostTree, limit: float) -> Check:
    worst = compare_trees(ours, reference, FLOOR, of)[0]
    return Check(name, worst.error, limit, worst.name)


def _drift_check(small: Config, sharded: Runner, exact: Runner) -> Check:
    """The drift of the layout's gradients, in units of the drift of one device's. `exact` is one device in float32."""
    smooth = small.model_copy(update={"model": _without_choice(small.model)})
    if smooth != small:
        sharded, exact = Runner(smooth), Runner(_exact(smooth, LayoutConfig()))
    alone = _drift(Runner(smooth.model_copy(update={"layout": LayoutConfig()})), exact)
    typical = float(np.median(list(alone.values())))
    ratios = {name: drift / max(alone[name], typical) for name, drift in _drift(sharded, exact).items()}
    return _worst(f"drift in {_precision(small)}, relative to one device's", ratios, DRIFT_RATIO)


def _drift(rounded: Runner, exact: Runner) -> dict[str, float]:
    """The error of each gradient, root mean square over the batches: that of a single one may be three times that of another."""
    errors: dict[str, list[float]] = {}
    for n in range(STEPS):
        for leaf in compare_trees(_of_weights(rounded.gradients(n)), exact.gradients(n), FLOOR):
            errors.setdefault(leaf.name, []).append(leaf.error)
    return {name: float(np.sqrt(np.mean(np.square(each)))) for name, each in errors.items()}


def _of_weights(gradients: HostTree) -> HostTree:
    """Without the magnitudes that stand in the place of gradients of histories, which the exact recipe has not."""
    return {
        name: _of_weights(part) if isinstance(part, dict) else part
        for name, part in gradients.items()
        if not name.endswith("_amax")
    }


def _without_choice(m: ModelConfig) -> ModelConfig:
    """Where tokens choose experts, all visit all: a choice is a step, which rounding may take one way or the other."""
    if m.mixture is None:
        return m
    everyone = {
        "experts_per_token": m.moe.n_experts,
        "capacity_factor": m.moe.capacity_factor and max(1.0, m.moe.capacity_factor),
    }
    return m.model_copy(update={"moe": m.moe.model_copy(update=everyone)})
