"""What all contenders share: sizes, command line, timing, result. Standard library and NumPy only: each runs in its own environment."""

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Size:
    """A GPT-2-like model: learned positions, biases, layer norm, GELU, tied embeddings, no dropout."""

    n_layers: int
    d_model: int
    n_heads: int
    vocab_size: int
    seq_len: int
    batch_size: int


SIZES = {
    "10m": Size(n_layers=6, d_model=256, n_heads=8, vocab_size=20480, seq_len=512, batch_size=8),
    # The vocabulary of GPT-2 padded to a multiple of 128, for all alike.
    "124m": Size(n_layers=12, d_model=768, n_heads=12, vocab_size=50304, seq_len=1024, batch_size=2),
}
LEARNING_RATE, B1, B2, EPS, WEIGHT_DECAY, CLIP_NORM = 3e-4, 0.9, 0.95, 1e-8, 0.1, 1.0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, default="10m")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, help="where the result goes; standard output when absent")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model; for PyTorch alone")
    return parser.parse_args()


def pin(threads: int) -> None:
    """Keep this process to so many processors, of which XLA takes its number of threads. To be called before JAX is imported."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def batch(size: Size, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets, int32 [batch, sequence]: random tokens of a skewed distribution, so that the loss has something to learn."""
    random = np.random.default_rng(step)
    tokens = (size.vocab_size * random.random((size.batch_size, size.seq_len + 1)) ** 4).astype(np.int32)
    return tokens[:, :-1], tokens[:, 1:]


def measure(options: argparse.Namespace, step: Callable[[np.ndarray, np.ndarray], float], about: dict[str, object]) -> None:
    """Time `step(inputs, targets) -> loss`, which must not return before the parameters are updated, and report it as one JSON line."""
    size = SIZES[options.size]
    seconds, losses = [], []
    for n in range(options.warmup + options.steps):
        inputs, targets = batch(size, n)
        began = time.perf_counter()
        losses.append(step(inputs, targets))
        seconds.append(time.perf_counter() - began)
    timed = seconds[options.warmup :]
    tokens = size.batch_size * size.seq_len
    result = {
        **about,
        "size": asdict(size),
        "dtype": options.dtype,
        "threads": options.threads,
        "first_step_seconds": seconds[0],
        "step_seconds": timed,
        "tokens_per_second": [tokens / s for s in timed],
        "losses": losses,
    }
    if options.json is None:
        print(json.dumps(result))
    else:
        options.json.write_text(json.dumps(result))
