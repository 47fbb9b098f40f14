"""`qianyi eval`: the newest checkpoint on the validation split, beside what needs no model."""

import json
import math
from dataclasses import asdict
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from qianyi.cli.run import Session, begin
from qianyi.data.load import bytes_of
from qianyi.data.tokenizer import id_count, token_bytes
from qianyi.evaluate.perplexity import (
    evaluate,
    gzip_bits_per_byte,
    uniform_bits_per_byte,
    unigram_accuracy,
    unigram_bits_per_byte,
    unigram_loss,
)
from qianyi.train.state import abstract_state
from qianyi.train.step import make_eval_step

COUNTED_SEQUENCES = 4096
"""Training sequences whose targets are counted for the unigram baseline of an objective that does not score all text."""


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
    """What needs no model, on the same targets.

    Where all text is scored, bits per byte: uniform over the vocabulary, unigram frequencies of the training split, gzip. Else nats per
    token, uniform and by unigram frequencies of training targets, and the accuracy of always saying the most frequent of them.
    """
    config, vocab_size = session.config, id_count(session.tokenizer)
    hosts = session.validation_data.host_batches(config.train.eval_batches)
    targets = np.concatenate([b["targets"].ravel() for b in hosts])
    targets = targets[targets >= 0]
    if config.train.objective.kind != "causal":
        counts = session.training_data.target_counts(vocab_size, COUNTED_SEQUENCES)
        return {
            "uniform_loss": math.log(vocab_size),
            "unigram_loss": unigram_loss(counts, targets),
            "unigram_accuracy": unigram_accuracy(counts, targets),
        }
    n_bytes = bytes_of(targets, token_bytes(session.tokenizer))
    text = session.tokenizer.decode(targets.tolist()).encode()
    return {
        "uniform": uniform_bits_per_byte(vocab_size, len(targets), n_bytes),
        "unigram": unigram_bits_per_byte(session.training_data.token_counts(vocab_size), targets, n_bytes),
        "gzip": gzip_bits_per_byte(text),
    }


def _show(result: dict[str, Any]) -> None:
    console = Console(highlight=False)
    console.print(
        f"step {result['step']}: validation loss {result['loss']:.4f} nats per token, perplexity {result['perplexity']:.2f}, "
        f"accuracy {result['accuracy']:.1%}, {result['tokens']:,} tokens"
        + ("" if result["bytes"] is None else f", {result['bytes']:,} bytes")
    )
    table = Table(box=None, pad_edge=False)
    for column in ("", *_columns(result)):
        table.add_column(column, justify="right" if column else "left")
    for name, *values in _rows(result):
        table.add_row(name, *values)
    console.print(table)


def _columns(result: dict[str, Any]) -> list[str]:
    return ["nats per token", "accuracy"] if result["bits_per_byte"] is None else ["bits per byte"]


def _rows(result: dict[str, Any]) -> list[list[str]]:
    simple = result["baselines"]
    if result["bits_per_byte"] is not None:
        scores = {"this model": result["bits_per_byte"], **simple}
        return [[name, f"{value:.4f}"] for name, value in scores.items()]
    return [
        ["this model", f"{result['loss']:.4f}", f"{result['accuracy']:.1%}"],
        ["unigram", f"{simple['unigram_loss']:.4f}", f"{simple['unigram_accuracy']:.1%}"],
        ["uniform", f"{simple['uniform_loss']:.4f}", ""],
    ]
