"""Every parallel method on one model, on 8 virtual devices: time of a step, bytes that a device sends, peak memory of a device.

    python benchmarks/parallelism.py
    python benchmarks/parallelism.py --only pipeline --steps 5

Bytes and memory are read from the program that XLA compiled for the CPU, so they do not depend on the load of the machine. The virtual
devices share its processors, and nothing is sent over a wire: times compare the total work of the methods, not networks or idle devices.
"""

import argparse
import datetime
import gc
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from qianyi.config.check import check
from qianyi.config.counts import parameter_count
from qianyi.config.model import MoEConfig
from qianyi.config.schema import Config, LayoutConfig, ModelConfig, ScheduleConfig, TrainConfig
from qianyi.parallel.mesh import make_mesh
from qianyi.parallel.rules import batch_spec
from qianyi.program.collectives import collectives
from qianyi.train.state import init_state
from qianyi.train.step import make_train_step

ROOT = Path(__file__).resolve().parent.parent
N_DEVICES = 8
MICROBATCHES = 8
MB = 1e6


DENSE = MoEConfig()


@dataclass(frozen=True)
class Method:
    """One row of the table."""

    family: str
    name: str
    layout: LayoutConfig
    accumulation: int = 1
    moe: MoEConfig = DENSE


DROPLESS = MoEConfig(n_experts=8)
CAPACITY = MoEConfig(n_experts=8, capacity_factor=1.25)
FSDP = LayoutConfig(data=8, gather="layer")
METHODS = (
    Method("one", "no parallelism", LayoutConfig()),
    Method("data", "data parallel", LayoutConfig(replica=8)),
    Method("data", "ZeRO-1", LayoutConfig(data=8, zero=1)),
    Method("data", "ZeRO-2", LayoutConfig(data=8, zero=2)),
    Method("data", "ZeRO-3 (FSDP), gather per layer", FSDP),
    Method("data", "ZeRO-3 (FSDP), gather per step", LayoutConfig(data=8, gather="step")),
    Method("data", "HSDP", LayoutConfig(replica=2, data=4)),
    Method("data", "FSDP per layer, 8 microbatches", FSDP, MICROBATCHES),
    Method("data", "FSDP per step, 8 microbatches", LayoutConfig(data=8, gather="step"), MICROBATCHES),
    Method("tensor", "tensor parallel", LayoutConfig(model=8)),
    Method("tensor", "FSDP x tensor", LayoutConfig(data=4, model=2)),
    Method("pipeline", "GPipe", LayoutConfig(stage=4, data=2, schedule="gpipe"), MICROBATCHES),
    Method("pipeline", "1F1B", LayoutConfig(stage=4, data=2), MICROBATCHES),
    Method("pipeline", "interleaved 1F1B, 2 chunks", LayoutConfig(stage=4, data=2, chunks=2), MICROBATCHES),
    Method("context", "context parallel, ring", LayoutConfig(context=8, exchange="ring")),
    Method("context", "context parallel, gather", LayoutConfig(context=8, exchange="gather")),
    Method("experts", "MoE dropless", LayoutConfig(expert=8), moe=DROPLESS),
    Method("experts", "MoE dropless x tensor", LayoutConfig(expert=4, model=2), moe=DROPLESS),
    Method("experts", "MoE capacity 1.25", LayoutConfig(expert=8), moe=CAPACITY),
    Method("experts", "MoE capacity 1.25 x tensor", LayoutConfig(expert=4, model=2), moe=CAPACITY),
)


# Measuring.


@dataclass
class Row:
    """What was measured; `problem` says why there is nothing."""

    family: str
    method: str
    layout: str
    microbatches: int
    step_seconds: list[float] = field(default_factory=list)
    bytes_sent: int = 0
    bytes_by_collective: dict[str, int] = field(default_factory=dict)
    peak_bytes: int = 0
    state_bytes: int = 0
    """Parameters and optimizer state: the part of the peak that stays between steps."""
    compile_seconds: float = 0.0
    loss: float = 0.0
    problem: str | None = None

    @property
    def seconds(self) -> float:
        return statistics.median(self.step_seconds)


def make_config(method: Method, options: argparse.Namespace) -> Config:
    """The recipe of a row. A token visits two experts, each half as wide as the dense layer, so all rows compute as much per token."""
    model = ModelConfig(
        vocab_size=options.vocab_size,
        n_layers=options.layers,
        d_model=options.width,
        n_heads=8,
        d_ff=4 * options.width if not method.moe.n_experts else 2 * options.width,
        max_seq_len=options.seq_len,
        moe=method.moe.model_copy(update={"group_tokens": options.seq_len}),
        dtype="float32",
    )
    train = TrainConfig(batch_size=options.batch, seq_len=options.seq_len, accumulation=method.accumulation)
    return Config(model=model, layout=method.layout, schedule=ScheduleConfig(kind="constant"), train=train)


def measure(method: Method, options: argparse.Namespace) -> Row:
    row = Row(method.family, method.name, method.layout.words, method.accumulation)
    try:
        config = make_config(method, options)
        check(config)
        mesh = make_mesh(config.layout, jax.devices()[: config.layout.n_devices])
        with jax.set_mesh(mesh):
            _run(config, mesh, options, row)
    except Exception as error:
        if options.strict:
            raise
        row.problem = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    gc.collect()
    return row


def _run(config: Config, mesh: Mesh, options: argparse.Namespace, row: Row) -> None:
    state, batch = init_state(config, mesh), _random_batch(config, mesh)
    row.state_bytes = sum(a.addressable_shards[0].data.nbytes for a in jax.tree.leaves(state))
    start = time.perf_counter()
    step = make_train_step(config).lower(state, batch).compile()
    row.compile_seconds = time.perf_counter() - start
    sent = Counter[str]()
    for collective in collectives(step.as_text(), mesh.shape):
        sent[collective.kind] += collective.bytes_per_device
    row.bytes_sent, row.bytes_by_collective = sent.total(), dict(sent)
    row.peak_bytes = peak_bytes(step)
    for turn in range(1 + options.steps):
        start = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready(state)
        if turn == 0:  # not timed: caches are cold; its loss is that of the initial weights, the same for all layouts
            row.loss = float(metrics.loss)
        else:
            row.step_seconds.append(time.perf_counter() - start)


def peak_bytes(compiled: Any) -> int:
    """Memory of one device while the program runs: what it is given, makes and returns; donated inputs are counted once."""
    m = compiled.memory_analysis()
    return m.argument_size_in_bytes + m.temp_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes


def _random_batch(config: Config, mesh: Mesh) -> dict[str, jax.Array]:
    train, sharding = config.train, NamedSharding(mesh, batch_spec(config.layout))
    tokens = np.random.default_rng(0).integers(0, config.model.vocab_size, (train.batch_size, train.seq_len + 1), np.int32)
    return {"inputs": jax.device_put(tokens[:, :-1], sharding), "targets": jax.device_put(tokens[:, 1:], sharding)}


# Reporting.


def main() -> None:
    options = _arguments()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", N_DEVICES)
    about = _about(options)
    rows: list[Row] = []
    for method in METHODS:
        if not options.only or any(word in f"{method.family} {method.name}" for word in options.only):
            rows.append(measure(method, options))
            print(_progress(rows[-1]), file=sys.stderr, flush=True)
    out = ROOT / "build" / "benchmarks" / "parallelism.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**about, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    print(_markdown(rows, about))
    if options.svg:
        options.svg.parent.mkdir(parents=True, exist_ok=True)
        options.svg.write_text(picture(rows, about))
    print(f"\nAll steps and collectives: {out.relative_to(ROOT)}", file=sys.stderr)
    if any(row.problem for row in rows):
        sys.exit(1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=64, help="sequences per step")
    parser.add_argument("--seq-len", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3, help="timed steps, after one that is not")
    parser.add_argument("--only", action="append", help="methods whose family or name contains this; may be repeated")
    parser.add_argument("--svg", type=Path, help="where to draw the picture")
    parser.add_argument("--strict", action="store_true", help="stop at the first method that fails, with its traceback")
    return parser.parse_args()


def _about(options: argparse.Namespace) -> dict[str, Any]:
    """Where and how it was measured."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    dense, experts = (parameter_count(make_config(method, options).model) for method in (METHODS[0], METHODS[-1]))
    return {
        "command": shlex.join(["python", "benchmarks/parallelism.py", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "commit": head.stdout.strip(),
        "jax": jax.__version__,
        "parameters": dense,
        "parameters_moe": experts,
        "layers": options.layers,
        "batch_size": options.batch,
        "seq_len": options.seq_len,
        "dtype": "float32",
    }


def _progress(row: Row) -> str:
    outcome = row.problem or f"{row.seconds:.2f} s, {row.bytes_sent / MB:.1f} MB sent, {row.peak_bytes / MB:.1f} MB peak"
    return f"{row.method} ({row.layout}): {outcome} (compiled in {row.compile_seconds:.0f} s)"


def _model_in_words(about: dict[str, Any]) -> str:
    return (
        f"{about['parameters'] / 1e6:.1f} million parameters (with experts {about['parameters_moe'] / 1e6:.1f}), {about['layers']} layers, "
        f"batch {about['batch_size']} x {about['seq_len']} tokens, {about['dtype']}"
    )


def _markdown(rows: list[Row], about: dict[str, Any]) -> str:
    """The table, and what one must know to read it."""
    lines = [
        f"{about['date']}, {about['cpu']}, {about['cpu_count']} processors, JAX {about['jax']}, commit {about['commit']}: "
        f"`{about['command']}`",
        "",
        f"A GPT of {_model_in_words(about)}; {N_DEVICES} virtual devices. Sent and memory: MB (10^6 bytes) of one device, per step.",
        "",
        "| method | layout | microbatches | step, s | sent, MB | of that | peak memory, MB | of that state, MB | loss of step 1 |",
        "|---|---|---:|---:|---:|---|---:|---:|---:|",
    ]
    for row in rows:
        start = f"| {row.method} | {row.layout} | {row.microbatches} |"
        if row.problem:
            lines.append(f"{start} {row.problem} | | | | | |")
            continue
        parts = sorted(row.bytes_by_collective.items(), key=lambda item: -item[1])
        shares = ", ".join(f"{name} {n / MB:.1f}" for name, n in parts if n >= MB / 20)
        lines.append(
            f"{start} {row.seconds:.2f} | {row.bytes_sent / MB:.1f} | {shares} | {row.peak_bytes / MB:.1f} | "
            f"{row.state_bytes / MB:.1f} | {row.loss:.4f} |"
        )
    return "\n".join(lines)


# The picture.

WIDTH, LEFT, TOP, ROW_HEIGHT, FAMILY_GAP = 920, 334, 96, 21, 9
PANEL_GAP, VALUE_WIDTH = 18, 44
COLORS = {"time of a step, s": "#2f6db3", "sent by a device, MB": "#d9822b", "peak memory, MB": "#3f8f5f"}
FONT = "font-family=\"-apple-system, 'Segoe UI', Helvetica, Arial, sans-serif\""


def picture(rows: list[Row], about: dict[str, Any]) -> str:
    """An SVG: a line per method, a panel of bars per quantity."""
    shown = [row for row in rows if row.problem is None]
    tops = _tops(shown)
    height = (tops[-1] if tops else TOP) + ROW_HEIGHT + 36
    width = (WIDTH - LEFT - PANEL_GAP * len(COLORS)) / len(COLORS)
    values = ([row.seconds for row in shown], [row.bytes_sent / MB for row in shown], [row.peak_bytes / MB for row in shown])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" {FONT} '
        'font-size="12" role="img" aria-labelledby="title">',
        '<title id="title">Step time, bytes sent and peak memory of every parallel method</title>',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(16, 28, f"Every parallel method on one model, {N_DEVICES} virtual devices", size=17, weight="bold"),
        _text(16, 49, f"GPT of {_model_in_words(about)}", color="#57606a"),
    ]
    parts += [label for row, top in zip(shown, tops, strict=True) for label in _labels(row, top)]
    for i, ((title, color), numbers) in enumerate(zip(COLORS.items(), values, strict=True)):
        parts += _panel(LEFT + i * (width + PANEL_GAP), width, title, color, list(zip(numbers, tops, strict=True)))
    where = f"{about['cpu']}, {about['cpu_count']} processors shared by all devices; JAX {about['jax']}."
    foot = f"{where} Sent: per step. Memory: of one device. Less is better."
    parts += [_text(16, height - 14, foot, size=11, color="#57606a"), "</svg>"]
    return "\n".join(parts) + "\n"


def _tops(rows: list[Row]) -> list[int]:
    """Where the line of each row begins; families stand apart."""
    tops, top = list[int](), TOP
    for i, row in enumerate(rows):
        top += FAMILY_GAP if i and row.family != rows[i - 1].family else 0
        tops.append(top)
        top += ROW_HEIGHT
    return tops


def _labels(row: Row, top: int) -> list[str]:
    return [_text(16, top + 14, row.method), _text(218, top + 14, row.layout, size=11, color="#57606a")]


def _panel(left: float, width: float, title: str, color: str, bars: list[tuple[float, int]]) -> list[str]:
    scale = (width - VALUE_WIDTH) / max([value for value, _ in bars] + [1e-9])
    bottom = max([top for _, top in bars] + [TOP]) + ROW_HEIGHT
    parts = [
        _text(left, TOP - 14, title, weight="bold", color=color),
        f'<line x1="{left:.1f}" y1="{TOP - 4}" x2="{left:.1f}" y2="{bottom}" stroke="#d0d7de"/>',
    ]
    for value, top in bars:
        length = max(value * scale, 0.5)
        parts += [
            f'<rect x="{left:.1f}" y="{top + 3}" width="{length:.1f}" height="{ROW_HEIGHT - 6}" rx="2" fill="{color}"/>',
            _text(left + length + 5, top + 14, f"{value:.1f}" if value < 100 else f"{value:.0f}", size=11),
        ]
    return parts


def _text(x: float, y: float, words: str, *, size: int = 12, weight: str = "normal", color: str = "#1f2328") -> str:
    return f'<text x="{x:.1f}" y="{y}" font-size="{size}" font-weight="{weight}" fill="{color}">{escape(words)}</text>'


if __name__ == "__main__":
    main()
