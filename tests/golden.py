"""Small models of all families, trained as `qianyi train` does, and the losses they reached on each platform.

python tests/golden.py             # trains them all and compares
python tests/golden.py --record    # writes what they reach to tests/goldens.json
"""

import json
import os
import platform
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from families import FAMILIES, variant

from qianyi.cli import eval as qianyi_eval
from qianyi.cli import train as qianyi_train
from qianyi.cli.run import Session, begin
from qianyi.cli.verify import QUICK_COMPILER
from qianyi.config.load import load
from qianyi.data.read import read_documents
from qianyi.data.special import reserved_names
from qianyi.data.tokenizer import train_tokenizer
from qianyi.evaluate.perplexity import unigram_loss

RECORDS = Path(__file__).with_name("goldens.json")
PLATFORM = f"cpu-{platform.machine()}"
VOCAB, SEQ_LEN, BATCH, STEPS = 512, 64, 8, 150
LEARNING_RATE = 2e-3
"""Half of the quickstart's, with which a difference of rounding grows to 1e-2 nats where queries and keys are normalized."""
LAST_STEPS = 20
"""Over which the training loss is averaged."""
TINY = {"bert": "bert-tiny", "t5": "t5-tiny"}
"""Families that a shipped recipe trains at this size."""
OBJECTIVES = {"glm": {"kind": "prefix"}, "t5 v1.1": {"kind": "span_corruption"}, "vaswani": {"kind": "span_corruption"}}
"""Where it is not causal."""
TOLERANCE_NATS, TOLERANCE_NATS_UNSTEADY = 1e-3, 2e-2
"""Rounding differs between CPUs, and what it does to the loss grows from step to step. Other instructions (no FMA), another level of the
compiler or number of threads moved losses of dense decoders by up to 9e-5 nats. Others moved further: by 9e-3 where one token sent to
another expert makes all later steps differ, by 9e-3 in T5 (Adafactor) and 2e-3 in post-norm encoder-decoders. On one machine runs are
equal."""


class Outcome(NamedTuple):
    """What a run reached."""

    train_loss: float
    """Nats per token, mean of the last LAST_STEPS steps."""
    validation_loss: float
    accuracy: float
    baselines: dict[str, float]
    """Of the same targets, for the TINY; else empty. Those of `qianyi eval`, and `words_loss`, see `words_loss`."""

    @property
    def golden(self) -> dict[str, float]:
        return {"train_loss": self.train_loss, "validation_loss": self.validation_loss}


def tolerance(family: str) -> float:
    model = FAMILIES[family]
    return TOLERANCE_NATS if model.kind == "decoder" and not model.mixture else TOLERANCE_NATS_UNSTEADY


def prepare_recipes(work: Path) -> None:
    """Write a recipe for each family, and a tokenizer with the special tokens of them all: the corpus is packed once."""
    tokenizer = work / "tokenizer.json"
    for family in FAMILIES:
        recipe_path(work, family).write_text(yaml.safe_dump(_recipe(family, work, tokenizer)), encoding="utf-8")
    configs = [load(str(recipe_path(work, family))).config for family in FAMILIES]
    special = dict.fromkeys(name for config in configs for name in reserved_names(config.train))
    texts = (document.text for source in configs[0].data.sources for document in read_documents(source.path, "text"))
    tokenizer.write_text(train_tokenizer(texts, VOCAB, list(special)).to_str(), encoding="utf-8")


def recipe_path(work: Path, family: str) -> Path:
    return work / f"{family.replace(' ', '-')}.yaml"


def _recipe(family: str, work: Path, tokenizer: Path) -> dict[str, object]:
    shared = {
        "data": {"dir": str(work / "data"), "tokenizer": str(tokenizer)},
        "checkpoint": {"every_steps": 0},
        "run": {"dir": str(work / "runs" / family), "tensorboard": False, "virtual_devices": 1},
    }
    if family in TINY:
        return {"extends": TINY[family], **shared, "train": {"eval_every": 0}}
    model = variant(FAMILIES[family], vocab_size=VOCAB, max_seq_len=SEQ_LEN)
    train = {"steps": STEPS, "batch_size": BATCH, "seq_len": SEQ_LEN, "eval_every": 0, "eval_batches": 16}
    return {
        "extends": "quickstart",
        **shared,
        "model": model.model_dump(mode="json"),
        "layout": {"data": 1, "model": 1},
        "optimizer": {"learning_rate": LEARNING_RATE},
        "train": {**train, "objective": OBJECTIVES.get(family, {"kind": "causal"})},
    }


def recorded() -> dict[str, dict[str, dict[str, float]]]:
    """Platform -> family -> `Outcome.golden`."""
    return json.loads(RECORDS.read_text(encoding="utf-8"))


def trainer() -> ProcessPoolExecutor:
    """A process that trains one model after the other on one device, by the program that users run."""
    return ProcessPoolExecutor(1, get_context("spawn"), _compile_quickly)


def _compile_quickly() -> None:
    """Compiling is most of these runs: at level 1 it takes half the time of the default, and steps are as fast."""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK_COMPILER} --xla_backend_optimization_level=1"


def reach(work: Path, family: str, overrides: tuple[str, ...] = ()) -> Outcome:
    """Train a family's recipe, in a process of `trainer`."""
    recipe = str(recipe_path(work, family))
    with (work / "log.txt").open("a") as log, redirect_stdout(log), redirect_stderr(log):
        qianyi_train.run(recipe, list(overrides))
        session = begin(recipe, list(overrides))
        baselines = {**qianyi_eval.baselines(session), "words_loss": words_loss(session)} if family in TINY else {}
    losses = [event["loss"] for event in _lines(session.run_dir / "events.jsonl")]
    scores = _lines(session.run_dir / "evals.jsonl")[-1]
    return Outcome(float(np.mean(losses[-LAST_STEPS:])), scores["loss"], scores["accuracy"], baselines)


def words_loss(session: Session) -> float:
    """Nats per target of a unigram model that is told where special tokens stand: a T5 knows sentinels from their order alone."""
    special = list(session.tokenizer.get_added_tokens_decoder())
    targets = np.concatenate([batch["targets"].ravel() for batch in session.validation_data.host_batches()])
    targets = targets[targets >= 0]
    words = targets[~np.isin(targets, special)]
    counts = session.training_data.target_counts(VOCAB, qianyi_eval.COUNTED_SEQUENCES)
    counts[special] = 0
    return unigram_loss(counts, words) * len(words) / len(targets)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main(record: bool) -> None:
    reached: dict[str, dict[str, float]] = {}
    known = recorded().get(PLATFORM, {})
    with tempfile.TemporaryDirectory() as directory, trainer() as process:
        prepare_recipes(Path(directory))
        for family in FAMILIES:
            began_seconds = time.perf_counter()
            outcome = process.submit(reach, Path(directory), family).result()
            reached[family] = {name: round(value, 6) for name, value in outcome.golden.items()}
            differences = [f"{value - known[family][name]:+.1e}" for name, value in outcome.golden.items() if family in known]
            print(f"{family:12}{time.perf_counter() - began_seconds:6.1f} s  {outcome}  {' '.join(differences)}", flush=True)
    if record:
        records = recorded() | {PLATFORM: reached}
        RECORDS.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main("--record" in sys.argv[1:])
