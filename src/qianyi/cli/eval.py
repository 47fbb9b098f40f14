"""`qianyi eval`: the newest checkpoint on the validation split, beside what needs no model."""

import json
from dataclasses import asdict

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from qianyi.cli.run import Session, begin
from qianyi.data.tokenizer import id_count
from qianyi.evaluate.perplexity import evaluate, gzip_bits_per_byte, uniform_bits_per_byte, unigram_bits_per_byte
from qianyi.train.state import abstract_state
from qianyi.train.step import make_eval_step


def run(recipe: str, overrides: list[str], as_json: bool) -> None:
    session = begin(recipe, overrides)
    config = session.config
    with jax.set_mesh(session.mesh):
        checkpoints = session.checkpoints(must_exist=True)
        state = checkpoints.restore(abstract_state(config, session.mesh), session.record)
        batches = session.validation_data.batches(session.batch_sharding, config.train.eval_batches)
        event = evaluate(make_eval_step(config), state.params, batches, int(state.step))
        checkpoints.close()
    result = {**asdict(event), "baselines": baselines(session)}
    if as_json:
        print(json.dumps(result))
    else:
        _show(result)


def baselines(session: Session) -> dict[str, float]:
    """Bits per byte on the same text: uniform over the vocabulary, unigram frequencies of the training split, gzip."""
    data = session.validation_data
    targets = np.concatenate([b["targets"].ravel() for b in data.host_batches(session.config.train.eval_batches)])
    targets = targets[targets >= 0]
    n_bytes = data.bytes_of(targets)
    vocab_size = id_count(session.tokenizer)
    text = session.tokenizer.decode(targets.tolist()).encode()
    return {
        "uniform": uniform_bits_per_byte(vocab_size, len(targets), n_bytes),
        "unigram": unigram_bits_per_byte(session.training_data.token_counts(vocab_size), targets, n_bytes),
        "gzip": gzip_bits_per_byte(text),
    }


def _show(result: dict[str, float | dict[str, float]]) -> None:
    console = Console(highlight=False)
    console.print(
        f"step {result['step']}: validation loss {result['loss']:.4f} nats per token, perplexity {result['perplexity']:.2f}, "
        f"{result['tokens']:,} tokens, {result['bytes']:,} bytes"
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    table.add_column("bits per byte", justify="right")
    scores = {"this model": result["bits_per_byte"], **result["baselines"]}  # type: ignore[dict-item]
    for name, value in scores.items():
        table.add_row(name, f"{value:.4f}")
    console.print(table)
