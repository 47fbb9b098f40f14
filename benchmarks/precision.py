"""One small model in every precision, on the quickstart's corpus: loss curves and how far each is from float32.

    python benchmarks/precision.py --svg docs/precision.svg
    python benchmarks/precision.py --steps 60 --only fp8

All begin with the same parameters and see the same batches in the same order. Two more in float32 show what a difference between two runs
means: one adds its gradients up in another order, so that it differs in the last digits alone; one begins with other parameters.
A CPU has no units for 8-bit numbers: it computes what they would, in float32, so there is nothing to learn here about speed.
"""

import argparse
import gc
import json
import math
import sys
import time
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import jax
import numpy as np
from machine import measured_here

from qianyi.cli.data import prepare_with_progress
from qianyi.cli.run import Session, begin
from qianyi.config.check import check
from qianyi.config.counts import parameter_count
from qianyi.config.load import load
from qianyi.evaluate.perplexity import evaluate
from qianyi.train.footprint import held
from qianyi.train.state import init_state
from qianyi.train.step import make_eval_step, make_train_step

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = "float32"
HALF = ("model.dtype=bfloat16",)
VARIANTS = {
    REFERENCE: (),
    "float32, other order": ("train.accumulation=4",),
    "float32, other seed": ("train.seed=1",),
    "bfloat16": HALF,
    "bfloat16 parameters": (*HALF, "train.param_dtype=bfloat16"),
    "fp8": (*HALF, "model.matmul=fp8"),
    "fp8_delayed": (*HALF, "model.matmul=fp8_delayed"),
    "int8": (*HALF, "model.matmul=int8"),
}
"""Overrides of the recipe."""
SMALL = ("model.n_layers=3", "model.d_model=128", "model.n_heads=4", "model.n_kv_heads=2", "model.d_ff=384", "train.seq_len=64")
GENTLE = "optimizer.learning_rate=1e-3"
"""At the quickstart's 4e-3 the model stays at the loss of unigrams for a while, and rounding decides when it leaves."""
ONE_DEVICE = ("layout.data=1", "layout.model=1", "run.virtual_devices=1")
SMOOTH_STEPS = 20
"""Losses are shown as means over so many steps."""


@dataclass
class Row:
    """What a variant did."""

    name: str
    losses: list[float] = field(default_factory=list)
    """Nats per token, of each step's batch."""
    validation: float = 0.0
    """Nats per token of held-out text after the last step."""
    parameter_bytes: int = 0
    seconds: float = 0.0

    @property
    def smooth(self) -> np.ndarray:
        """[steps - width + 1]: means over the last steps."""
        width = min(SMOOTH_STEPS, len(self.losses))
        return np.convolve(self.losses, np.full(width, 1 / width), mode="valid")


def train(name: str, settings: list[str]) -> Row:
    resolved = load("quickstart", [*settings, *VARIANTS[name]])
    check(resolved.config)
    session, config, row = Session(resolved), resolved.config, Row(name)
    row.parameter_bytes = held(config).parameters
    began_seconds = time.perf_counter()
    with jax.set_mesh(session.mesh):
        state, step = init_state(config, session.mesh), make_train_step(config)
        for batch in session.training_data.batches(session.batch_sharding, 0, config.train.steps):
            state, metrics = step(state, batch)
            row.losses.append(float(metrics.loss))
        held_out = session.validation_data.batches(session.batch_sharding, config.train.eval_batches)
        row.validation = evaluate(make_eval_step(config), state.params, held_out, config.train.steps).loss
    row.seconds = time.perf_counter() - began_seconds
    return row


def main() -> None:
    options = _arguments()
    length = (f"train.steps={options.steps}", f"schedule.warmup_steps={max(1, options.steps // 10)}")
    settings = [*SMALL, *ONE_DEVICE, GENTLE, *length]
    prepare_with_progress(begin("quickstart", settings).config)
    rows: list[Row] = []
    for name in VARIANTS:
        if name == REFERENCE or not options.only or any(word in name for word in options.only):
            rows.append(train(name, settings))
            print(f"{name}: validation {rows[-1].validation:.4f}, {rows[-1].seconds:.0f} s", file=sys.stderr, flush=True)
            gc.collect()
    about = _about(options)
    out = ROOT / "build" / "benchmarks" / "precision.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**about, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    print(_markdown(rows, about))
    if options.svg:
        options.svg.parent.mkdir(parents=True, exist_ok=True)
        options.svg.write_text(picture(rows, about))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--only", action="append", help="variants whose name contains this, beside float32; may be repeated")
    parser.add_argument("--svg", type=Path, help="where to draw the picture")
    return parser.parse_args()


def _about(options: argparse.Namespace) -> dict[str, Any]:
    """Where and how it was measured."""
    config = load("quickstart", SMALL).config
    return {
        **measured_here("precision.py"),
        "parameters": parameter_count(config.model),
        "steps": options.steps,
        "step_tokens": config.train.batch_size * config.train.seq_len,
    }


def _model_in_words(about: dict[str, Any]) -> str:
    return f"{about['parameters'] / 1e6:.1f} million parameters, {about['steps']} steps of {about['step_tokens']:,} tokens"


def _markdown(rows: list[Row], about: dict[str, Any]) -> str:
    """The table, and what one must know to read it."""
    width = min(SMOOTH_STEPS, about["steps"])
    lines = [
        f"{about['date']}, {about['cpu']}, {about['cpu_count']} processors, JAX {about['jax']}, commit {about['commit']}: "
        f"`{about['command']}`",
        "",
        f"A small Llama on the quickstart's corpus: {_model_in_words(about)}. Nats per token; training loss: mean of the "
        f"last {width} steps.",
        "",
        "| | training loss | to float32 | held-out loss | to float32 | largest distance on the way | parameters, MB | run, s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    reference = rows[0]
    for row in rows:
        distance = row.smooth - reference.smooth
        lines.append(
            f"| {row.name} | {row.smooth[-1]:.4f} | {distance[-1]:+.4f} | {row.validation:.4f} | "
            f"{row.validation - reference.validation:+.4f} | {np.abs(distance).max():.4f} | {row.parameter_bytes / 1e6:.1f} | "
            f"{row.seconds:.0f} |"
        )
    return "\n".join(lines)


# The picture.

WIDTH, HEIGHT, LEFT, TOP, GAP, LEGEND = 920, 400, 60, 88, 80, 60
COLORS = ("#1f2328", "#e07aa8", "#9aa4af", "#2f6db3", "#7a4fb5", "#d9822b", "#c0392b", "#3f8f5f")
FONT = "font-family=\"-apple-system, 'Segoe UI', Helvetica, Arial, sans-serif\""


def picture(rows: list[Row], about: dict[str, Any]) -> str:
    """An SVG: losses on the left, their distance to float32 on the right."""
    width = (WIDTH - LEFT - GAP - 20) / 2
    colors = dict(zip(VARIANTS, COLORS, strict=True))
    losses = {row.name: row.smooth for row in rows}
    distances = {name: losses[name] - losses[REFERENCE] for name in losses if name != REFERENCE}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT + LEGEND}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT + LEGEND}" {FONT} font-size="12" role="img" aria-labelledby="title">',
        '<title id="title">Loss of one model in every precision, and its distance to float32</title>',
        f'<rect width="{WIDTH}" height="{HEIGHT + LEGEND}" fill="#ffffff"/>',
        _text(16, 28, "One model in every precision", size=17, weight="bold"),
        _text(16, 49, f"A Llama of {_model_in_words(about)}; means of {SMOOTH_STEPS} steps", color="#57606a"),
        *_panel(LEFT, width, "training loss, nats per token", losses, colors, about["steps"]),
        *_panel(LEFT + width + GAP, width, "distance to float32", distances, colors, about["steps"]),
    ]
    for i, name in enumerate(losses):
        x, y = LEFT + 210 * (i % 4), HEIGHT + 14 + 22 * (i // 4)
        parts.append(f'<line x1="{x}" y1="{y - 4}" x2="{x + 24}" y2="{y - 4}" stroke="{colors[name]}" stroke-width="2.5"/>')
        parts.append(_text(x + 31, y, name))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(left: float, width: float, title: str, curves: dict[str, np.ndarray], colors: dict[str, str], steps: int) -> list[str]:
    bottom = HEIGHT - 44
    values = np.concatenate([*curves.values(), np.zeros(0)]) if curves else np.zeros(1)
    low, high = float(values.min()), float(values.max())
    low, high = low - 0.03 * (high - low) - 1e-9, high + 0.03 * (high - low) + 1e-9

    def at(step: float, value: float) -> tuple[float, float]:
        return left + width * step / steps, bottom - (bottom - TOP) * (value - low) / (high - low)

    parts = [_text(left, TOP - 14, title, weight="bold")]
    for words, value in _ticks(low, high):
        y, color = at(0, value)[1], "#e6e9ed" if value else "#8c959f"
        parts.append(f'<line x1="{left:.1f}" y1="{y:.1f}" x2="{left + width:.1f}" y2="{y:.1f}" stroke="{color}"/>')
        parts.append(_text(left - 6, round(y) + 4, words, size=11, anchor="end"))
    for step in (0, steps // 2, steps):
        parts.append(_text(at(step, 0)[0], bottom + 18, str(step), size=11, anchor="middle"))
    for name, curve in curves.items():
        first = steps - len(curve) + 1
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(first + i, value) for i, value in enumerate(curve)))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colors[name]}" stroke-width="1.6"/>')
    return [*parts, _text(left + width / 2, bottom + 34, "step", size=11, anchor="middle", color="#57606a")]


def _ticks(low: float, high: float) -> list[tuple[str, float]]:
    """Round numbers in between, as they are written and as they are."""
    digits = math.floor(math.log10((high - low) / 2))
    every = next(unit * 10.0**digits for unit in (1, 2, 5, 10) if (high - low) / (unit * 10.0**digits) <= 7)
    return [(f"{n * every:.{max(0, -digits)}f}", n * every) for n in range(math.ceil(low / every), math.floor(high / every) + 1)]


def _text(
    x: float, y: float, words: str, size: int = 12, weight: str = "normal", color: str = "#1f2328", anchor: str = "start"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y}" font-size="{size}" font-weight="{weight}" fill="{color}" text-anchor="{anchor}">'
        f"{escape(words)}</text>"
    )


if __name__ == "__main__":
    main()
