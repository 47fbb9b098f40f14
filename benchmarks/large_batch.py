"""Large batches: steps and tokens to a target loss, for SGD, LARS, LAMB and AdamW, with and without scaling rules for the learning rate.

    python benchmarks/large_batch.py --svg docs/large_batch.svg
    python benchmarks/large_batch.py --quick

One small byte-level GPT learns the plays of Shakespeare until its loss on held-out scenes is below the target. Each optimizer's learning
rate is first searched at one batch size; at the others it stays (none), follows the batch size (linear, Goyal et al. 2017), or its square
root (You et al. 2020). Warm-up is a twentieth of the steps that a run may make; then the rate is constant; there is no weight decay.
"""

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from curves import Curve, Panel, picture
from machine import measured_here
from numpy.typing import NDArray

from qianyi.config.check import check
from qianyi.config.counts import parameter_count
from qianyi.config.optimizer import OptimizerConfig, ScheduleConfig
from qianyi.config.schema import Config, ModelConfig, TrainConfig
from qianyi.data.builtin import documents
from qianyi.parallel.mesh import make_mesh
from qianyi.train.state import TrainState, init_state
from qianyi.train.step import make_eval_step, make_loss_and_gradients, make_update

ROOT = Path(__file__).resolve().parent.parent
SEQ_LEN = 32
MICROBATCH = 512
"""Sequences at a time at most: activations that fit into caches."""
BASE = 32
"""Sequences per step at which learning rates are searched."""
RULES = ("none", "linear", "sqrt")
DIVERGED = 1.0
"""Nats above the first loss."""
PATIENCE = 4
"""Evaluations in a row so high, at which a run is given up. One may pass: AdamW at 512 sequences goes from 3.5 to 6.9 nats in one step
and to 3.4 in the next."""


@dataclass(frozen=True)
class Effort:
    """How much is tried."""

    batch_sizes: tuple[int, ...]
    width: int
    layers: int
    target: float
    """Nats per byte."""
    tokens: int
    """That a run may read, or `least_steps` steps where these are more."""
    least_steps: int
    rates: int
    """Learning rates of the search, around the middle one."""


FULL = Effort((8, 32, 128, 512), 64, 1, 2.5, 2**20, 256, 4)
QUICK = Effort((32, 128, 512), 32, 1, 3.2, 2**18, 8, 1)
RATES = {
    "sgd": (0.1, 0.3, 1.0, 0.03),
    "lars": (10.0, 3.0, 30.0, 1.0),
    "lamb": (0.02, 0.006, 0.06, 0.002),
    "adamw": (6e-3, 2e-3, 2e-2, 6e-4),
}
"""Learning rates to search, the likeliest first."""
NAMES = {"sgd": "SGD", "lars": "LARS", "lamb": "LAMB", "adamw": "AdamW"}


@dataclass
class Run:
    """One training run."""

    optimizer: str
    rule: str
    batch_size: int
    base_rate: float
    """The learning rate at BASE."""
    rate: float
    losses: list[tuple[int, float]] = field(default_factory=list)
    """(step, held-out loss in nats per byte)."""
    steps: float | None = None
    """To the target, interpolated between two evaluations; None: it was not reached."""
    seconds: float = 0.0

    @property
    def diverged(self) -> bool:
        recent = [loss for _, loss in self.losses[-PATIENCE:]]
        return len(recent) == PATIENCE and all(not loss <= self.losses[0][1] + DIVERGED for loss in recent)

    @property
    def outcome(self) -> str:
        if self.steps is not None:
            return f"{self.steps:,.0f} steps, {self.steps * self.batch_size * SEQ_LEN / 1e6:.2f} M tokens"
        return "diverged" if self.diverged else f"not reached ({self.losses[-1][1]:.2f})"

    @property
    def rank(self) -> tuple[float, float]:
        """Less is better."""
        last = self.losses[-1][1]
        return (math.inf if self.steps is None else self.steps, last if math.isfinite(last) else math.inf)


# Training.


def make_config(run: Run, effort: Effort) -> Config:
    steps = max(effort.tokens // (run.batch_size * SEQ_LEN), effort.least_steps)
    model = ModelConfig(
        vocab_size=256,
        n_layers=effort.layers,
        d_model=effort.width,
        n_heads=4,
        max_seq_len=SEQ_LEN,
        norm="rmsnorm",
        position="rope",
        bias=False,
        dtype="float32",
    )
    return Config(
        model=model,
        optimizer=OptimizerConfig(kind=run.optimizer, learning_rate=run.base_rate, weight_decay=0.0),  # pyright: ignore[reportArgumentType]
        schedule=ScheduleConfig(
            kind="constant",
            warmup_steps=max(1, steps // 20),
            scale_rule=run.rule,  # pyright: ignore[reportArgumentType]
            base_batch_size=None if run.rule == "none" else BASE,
        ),
        train=TrainConfig(
            steps=steps,
            batch_size=run.batch_size,
            seq_len=SEQ_LEN,
            accumulation=max(1, run.batch_size // MICROBATCH),
            loss_chunk_tokens=4096,
        ),
    )


class Bench:
    """The text, and what runs have in common: a run compiles just its update."""

    def __init__(self, effort: Effort):
        self.effort = effort
        scenes = [text.encode() for _, text in documents("builtin:shakespeare")]
        self._held_out = _bytes(scenes[::20])
        self._train = _bytes([scene for i, scene in enumerate(scenes) if i % 20])
        self._gradients: dict[int, Any] = {}
        self._initial: dict[str, TrainState] = {}
        alone = make_config(Run("sgd", "none", MICROBATCH, 1.0, 1.0), effort)
        self._mesh = make_mesh(alone.layout, jax.devices()[:1])
        self._score = make_eval_step(alone)

    def run(self, optimizer: str, rule: str, batch_size: int, base_rate: float) -> Run:
        """Train to the target, or as long as a run may."""
        run = Run(optimizer, rule, batch_size, base_rate, base_rate)
        config = make_config(run, self.effort)
        check(config)
        run.rate = config.peak_learning_rate
        began = time.perf_counter()
        with jax.set_mesh(self._mesh):
            self._train_to_target(run, config)
        run.seconds = time.perf_counter() - began
        print(
            f"{NAMES[optimizer]}, batch {batch_size}, {rule}, rate {run.rate:.3g}: {run.outcome}, {run.seconds:.0f} s",
            file=sys.stderr,
        )
        return run

    def _train_to_target(self, run: Run, config: Config) -> None:
        if run.batch_size not in self._gradients:
            self._gradients[run.batch_size] = jax.jit(make_loss_and_gradients(config))
        if run.optimizer not in self._initial:
            self._initial[run.optimizer] = init_state(config, self._mesh)
        state, gradients, update = self._initial[run.optimizer], self._gradients[run.batch_size], jax.jit(make_update(config))
        every = max(1, 2**15 // (run.batch_size * SEQ_LEN))
        run.losses.append((0, self._held_out_loss(state)))
        for n in range(1, config.train.steps + 1):
            out = gradients(state.params, _windows(self._train, run.batch_size, n))
            state = update(state, out.gradients, out.grad_norm)
            if n % every == 0 or n == config.train.steps:
                run.losses.append((n, self._held_out_loss(state)))
                (before, above), (after, below) = run.losses[-2:]
                if below <= self.effort.target:
                    run.steps = before + (after - before) * (above - self.effort.target) / (above - below)
                if run.steps is not None or run.diverged:
                    return

    def _held_out_loss(self, state: TrainState) -> float:
        total, _, n_tokens = self._score(state.params, _windows(self._held_out, MICROBATCH, 0))
        return float(total) / int(n_tokens)


def _bytes(texts: list[bytes]) -> NDArray[np.int32]:
    return np.frombuffer(b"\n".join(texts), np.uint8).astype(np.int32)


def _windows(text: NDArray[np.int32], n: int, step: int) -> dict[str, jax.Array]:
    """The batch of a step: n places in the text, the same for every optimizer."""
    starts = np.random.default_rng((n, step)).integers(0, text.size - SEQ_LEN - 1, n)
    rows = text[starts[:, None] + np.arange(SEQ_LEN + 1)]
    return {"inputs": jax.numpy.asarray(rows[:, :-1]), "targets": jax.numpy.asarray(rows[:, 1:])}


def search(bench: Bench, optimizer: str) -> Run:
    """The run at BASE with the best of the learning rates."""
    rates = RATES[optimizer][: bench.effort.rates]
    return min((bench.run(optimizer, "none", BASE, rate) for rate in rates), key=lambda run: run.rank)


def compare(bench: Bench, optimizer: str) -> list[Run]:
    """All rules and batch sizes; at BASE rules do not differ."""
    base = search(bench, optimizer)
    runs = [base]
    for rule in RULES:
        runs += [bench.run(optimizer, rule, size, base.base_rate) for size in bench.effort.batch_sizes if size != BASE]
    return runs


# Reporting.


def main() -> None:
    options = _arguments()
    jax.config.update("jax_platforms", "cpu")
    effort = QUICK if options.quick else FULL
    bench = Bench(replace(effort, batch_sizes=options.batch_sizes or effort.batch_sizes))
    about, began = _about(bench.effort), time.perf_counter()
    runs = [run for optimizer in options.only or NAMES for run in compare(bench, optimizer)]
    about["minutes"] = round((time.perf_counter() - began) / 60, 1)
    out = ROOT / "build" / "benchmarks" / ("large_batch-quick.json" if options.quick else "large_batch.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**about, "runs": [asdict(run) for run in runs]}, indent=1) + "\n")
    print(_markdown(runs, about))
    if options.svg:
        options.svg.parent.mkdir(parents=True, exist_ok=True)
        options.svg.write_text(
            picture("Large batches: steps to the same loss", f"{_in_words(about)}.", BASE, _panels(runs, about))
        )
    print(f"\nAll losses: {out.relative_to(ROOT)}", file=sys.stderr)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller model, fewer tokens, no search: to see that it works")
    parser.add_argument(
        "--batch-sizes", metavar="N,N,...", type=_sizes, help=f"in place of the usual ones; {BASE} must be among them"
    )
    parser.add_argument("--only", action="append", choices=list(NAMES), help="just this optimizer; may be repeated")
    parser.add_argument("--svg", type=Path, help="where to draw the picture")
    return parser.parse_args()


def _sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(sorted({int(size) for size in text.split(",")}))
    if BASE not in sizes or sizes[0] < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected sizes of which one is {BASE}")
    return sizes


def _about(effort: Effort) -> dict[str, Any]:
    """Where and how it was measured."""
    return {
        **measured_here("large_batch.py"),
        "parameters": parameter_count(make_config(Run("sgd", "none", BASE, 1, 1), effort).model),
        "effort": asdict(effort),
    }


def _in_words(about: dict[str, Any]) -> str:
    effort = about["effort"]
    return (
        f"Byte-level GPT of {about['parameters'] / 1e3:.0f} thousand parameters, sequences of {SEQ_LEN} bytes of Shakespeare; target: "
        f"{effort['target']} nats per held-out byte"
    )


def _markdown(runs: list[Run], about: dict[str, Any]) -> str:
    """The table, and what one must know to read it."""
    effort = about["effort"]
    lines = [
        f"{about['date']}, {about['cpu']}, {about['cpu_count']} processors, JAX {about['jax']}, commit {about['commit']}, "
        f"{about['minutes']} minutes: `{about['command']}`",
        "",
        f"{_in_words(about)}. Learning rates were searched at batch {BASE}. A run may read {effort['tokens'] / 1e6:.1f} million tokens, or "
        f"make {effort['least_steps']} steps where that is more; of one that does not reach the target, the last loss.",
        "",
        "| optimizer | rate at " + f"{BASE} | rule | " + " | ".join(f"batch {size:,}" for size in effort["batch_sizes"]) + " |",
        "|---|---:|---|" + "---:|" * len(effort["batch_sizes"]),
    ]
    for optimizer in dict.fromkeys(run.optimizer for run in runs):
        for rule in RULES:
            found = _line(runs, optimizer, rule)
            start = f"| {NAMES[optimizer]} | {found[BASE].base_rate:g} | {rule} | "
            lines.append(start + " | ".join(found[size].outcome for size in effort["batch_sizes"]) + " |")
    return "\n".join(lines)


def _line(runs: list[Run], optimizer: str, rule: str) -> dict[int, Run]:
    """By batch size; at BASE all rules are the same run."""
    return {run.batch_size: run for run in runs if run.optimizer == optimizer and (run.rule == rule or run.batch_size == BASE)}


TITLES = {"none": "same learning rate", "linear": "rate x batch size", "sqrt": "rate x root of batch size"}


def _panels(runs: list[Run], about: dict[str, Any]) -> list[Panel]:
    def curve(optimizer: str, rule: str) -> Curve:
        found = _line(runs, optimizer, rule)
        return Curve(NAMES[optimizer], [(size, found[size].steps) for size in about["effort"]["batch_sizes"]])

    optimizers = list(dict.fromkeys(run.optimizer for run in runs))
    return [Panel(TITLES[rule], [curve(optimizer, rule) for optimizer in optimizers]) for rule in RULES]


if __name__ == "__main__":
    main()
