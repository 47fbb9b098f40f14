"""The time of a step as read from compiled programs, beside published runs and the plan.

    QIANYI_COMPILERS=.venv-pods python benchmarks/compiled_time.py            # compiles what docs/compiled_time.csv lacks, prints the table
    python benchmarks/compiled_time.py --table                                # from docs/compiled_time.csv alone

Qianyi's step is compiled with the model, chips, layout, batch and recomputation of runs that others published with programs of their own,
so a reading differs from a published time by what is read wrong and by what the programs do differently. Every estimator has constants that
are fitted on the other rows of its kind of chip: an error is one of a row that its constants have not seen.
"""

import argparse
import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import ROOT
from scipy.optimize import nnls

from qianyi.compile.outcome import compile_recipe
from qianyi.compile.read import Reading
from qianyi.compile.target import target
from qianyi.plan.predict import predict
from qianyi.plan.rows import published_rows

TABLE = ROOT / "docs" / "compiled_time.csv"
CONSTANTS = ROOT / "src" / "qianyi" / "compile" / "data" / "time.yaml"
ROWS = {
    "maxtext_readme_0063": "tpu-v4:4x4x4",
    "maxtext_readme_0069": "tpu-v5e:16x16",
    "maxtext_readme_0075": "tpu-v5e:16x16",
    "maxtext_readme_0087": "tpu-v5e:16x16",
    "maxtext_readme_0094": "tpu-v5p:4x4x8",
    "maxtext_readme_0095": "tpu-v5p:4x4x4",
    "maxtext_readme_0098": "tpu-v5p:4x8x8",
    "sc21_table1_0000": "a100:4x8",
    "sc21_table1_0001": "a100:8x8",
    "sc21_table1_0002": "a100:16x8",
    "sc21_table1_0003": "a100:32x8",
    "mpt_foundry_0253": "a100:8x8",
    "mpt_foundry_0262": "a100:1x8",
    "mpt_foundry_0268": "a100:1x8",
    "torchtitan_0187": "h100:32x8",
    "mpt_foundry_0210": "h100:16x8",
    "mpt_foundry_0213": "h100:16x8",
    "mpt_foundry_0219": "h100:16x8",
    "mpt_foundry_0236": "h100:1x8",
}
"""Dense models in bfloat16 whose configuration is wholly known, without a pipeline: by id the chips."""
FEATURES = ("products", "attention", "other", "communication", "busy")
COLUMNS = ("id", "model", "chip", "chips", "published", "plan", "floor", "read", *FEATURES)
Estimator = Callable[[dict[str, float]], Sequence[float]]
ESTIMATORS: dict[str, Estimator] = {
    "FLOPs of the program at the peak": lambda r: [r["floor"]],
    "the reading": lambda r: [r["read"]],
    "products and attention": lambda r: [r["products"] + r["attention"]],
    "products and attention; the rest": lambda r: [r["products"] + r["attention"], r["read"] - r["products"] - r["attention"]],
    "FLOPs; what is not products": lambda r: [r["floor"], r["other"] + r["communication"]],
    "the longer of work and links": lambda r: [max(r["products"] + r["attention"] + r["other"], r["busy"])],
}
"""All that were tried: terms, each of which gets a constant."""
CHOSEN = "products and attention; the rest"
PLATFORMS = {"TPU": "tpu", "GPU": "cuda"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--table", action="store_true", help="compile nothing")
    options = parser.parse_args()
    found = read_table()
    if not options.table:
        published = {row["id"]: row for row in published_rows()}
        for name, chips in ROWS.items():
            if name not in found:
                found[name] = compiled(published[name], chips)
                write_table(found)
                print(name, found[name], flush=True)
    write_constants(list(found.values()))
    print("\n".join(page(list(found.values()))))


def compiled(row: dict[str, str], chips: str) -> dict[str, Any]:
    """One row: the program's features in seconds."""
    outcome = compile_recipe("llama2-7b" if row["gated_mlp"] == "1" else "gpt3-6.7b", overrides(row), target(chips))
    reading = outcome.result
    if not isinstance(reading, Reading):
        raise SystemExit(f"{row['id']}: does not fit: {reading}")
    sent = sum(seconds for term, seconds in reading.terms.items() if " over " in term)
    products, attention = reading.terms.get("products", 0.0), reading.terms.get("attention", 0.0)
    features = {
        "floor": reading.floor_seconds,
        "read": reading.read_seconds,
        "products": products,
        "attention": attention,
        "other": reading.read_seconds - products - attention - sent,
        "communication": sent,
        "busy": sum(c.seconds for c in reading.collectives),
    }
    seconds = float(row["published_step_time_s"] or row["derived_step_time_s"])
    about = {
        "id": row["id"],
        "model": row["model"],
        "chip": outcome.target.cluster.chip.name,
        "chips": outcome.target.cluster.n_chips,
    }
    plan = float(predict(row).predicted_step_seconds)
    return about | {"published": seconds, "plan": plan} | {k: float(f"{v:.4g}") for k, v in features.items()}


def overrides(row: dict[str, str]) -> list[str]:
    """A published configuration as settings of a recipe."""
    data = int(row["chips"]) // int(row["tp"] or 1)
    shards = int(row["fsdp_or_zero_stage"].partition("=")[2] or data)
    zero = 0 if row["fsdp_or_zero_stage"] == "0" else 3
    rows = int(row["global_batch_sequences"])
    micro = int(float(row["micro_batch"] or rows / data))
    remat = {"full": "full", "none": "none"}.get(row["recompute"], "matmuls")
    model = {
        "n_layers": row["layers"],
        "d_model": row["d_model"],
        "n_heads": row["heads"],
        "n_kv_heads": row["kv_heads"] or row["heads"],
        "d_ff": row["d_ff"],
        "vocab_size": -(-int(row["vocab"]) // 128) * 128,
        "max_seq_len": row["seq_len"],
        "remat": remat,
    }
    train = {"seq_len": row["seq_len"], "batch_size": rows, "accumulation": max(1, rows // (data * micro)), "batch_ramp": "[]"}
    layout = {
        "replica": data // shards,
        "data": shards,
        "model": row["tp"] or 1,
        "zero": zero,
        "stage": 1,
        "context": 1,
        "expert": 1,
    }
    groups = {"model": model, "train": train, "layout": layout}
    return [f"{group}.{key}={value}" for group, values in groups.items() for key, value in values.items()]


def read_table() -> dict[str, dict[str, Any]]:
    if not TABLE.exists():
        return {}
    words = {"id", "model", "chip"}
    with TABLE.open() as file:
        return {r["id"]: {k: v if k in words else float(v) for k, v in r.items()} for r in csv.DictReader(file)}


def write_table(found: dict[str, dict[str, Any]]) -> None:
    with Path(TABLE).open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(found[name] for name in ROWS if name in found)


def write_constants(rows: list[dict[str, Any]]) -> None:
    """What `qianyi compile` makes of a reading: the constants of the chosen estimator, and how far it was off on unseen rows."""
    lines = [
        "# Written by benchmarks/compiled_time.py: seconds of a step are work x (products + attention) + rest x all else that is read;",
        "# error: the largest, either way, on runs that were left out of the fit.",
    ]
    for kind, of in kinds(rows).items():
        work, rest = fitted(of, ESTIMATORS[CHOSEN])
        off = left_out(of, ESTIMATORS[CHOSEN]).max()
        lines.append(f"{PLATFORMS[kind]}: {{work: {work:.3f}, rest: {rest:.3f}, error: {off:.2f}, runs: {len(of)}}}")
    CONSTANTS.write_text("\n".join(lines) + "\n")


def kinds(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    both = {"TPU": [r for r in rows if "tpu" in r["chip"]], "GPU": [r for r in rows if "tpu" not in r["chip"]]}
    return {kind: of for kind, of in both.items() if len(of) > 2}


def page(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Tables in Markdown."""
    yield "| run | model | chips | published, s | plan | read from the program | its FLOPs at the peak |"
    yield "|---|---|---|---:|---:|---:|---:|"
    for r in rows:
        values = " | ".join(f"{r[k]:.3g} ({r[k] / r['published']:.2f})" for k in ("plan", "read", "floor"))
        yield f"| {r['id']} | {r['model']} | {r['chips']:.0f} {r['chip']} | {r['published']:.3g} | {values} |"
    groups = kinds(rows)
    yield ""
    yield "| estimator | " + " | ".join(f"{kind}, {len(of)} runs: mean error | largest" for kind, of in groups.items()) + " |"
    yield "|---|" + "---:|---:|" * len(groups)
    for name, estimator in ESTIMATORS.items():
        errors = [left_out(of, estimator) for of in groups.values()]
        yield f"| {name} | " + " | ".join(f"{e.mean():.1%} | {e.max():.1%}" for e in errors) + " |"


def left_out(rows: list[dict[str, Any]], estimator: Estimator) -> np.ndarray:
    """Of each row the error of an estimate whose constants were fitted on the others."""
    errors: list[float] = []
    for i, row in enumerate(rows):
        constants = fitted([*rows[:i], *rows[i + 1 :]], estimator)
        errors.append(abs(float(np.array(estimator(row)) @ constants) / row["published"] - 1))
    return np.array(errors)


def fitted(rows: list[dict[str, Any]], estimator: Estimator) -> np.ndarray:
    """Constants, none below 0, with the least squares of relative errors."""
    terms, published = np.array([estimator(r) for r in rows]), np.array([r["published"] for r in rows])
    return nnls(terms / published[:, None], np.ones(len(rows)))[0]


if __name__ == "__main__":
    main()
