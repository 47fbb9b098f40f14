"""The training steps of Qianyi and MaxText, compiled one after the other by one compiler for the same TPUs, which are not here.

    make benchmark-peers
    .venv-maxtext/bin/python benchmarks/compile_vs_maxtext.py --case gpt3-175b --keep build/compiled

Both run in MaxText's environment, so that JAX and the compiler are the same. What the compiler says of memory, and what both programs
contain by the same reader, is printed side by side: Markdown, and with --keep the two texts and their numbers.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from machine import ROOT

from qianyi.compile.compilers import ENVIRONMENT, CompileError, compile_step
from qianyi.compile.costs import ATTENTION, OTHER, PRODUCTS, pricing
from qianyi.compile.target import target
from qianyi.program.collectives import bytes_per_device, count_sent
from qianyi.program.flops import flops
from qianyi.program.hlo import Module, parse
from qianyi.program.timeline import Timeline, timeline


@dataclass(frozen=True)
class Case:
    """One model on one cluster, as each wants it said."""

    target: str
    recipe: str
    overrides: tuple[str, ...]
    maxtext: tuple[str, ...]
    note: str


CASES = {
    "gpt3-175b": Case(
        "tpu-v5p:4x8x8",
        "gpt3-175b",
        (
            "layout.data=32",
            "layout.model=8",
            "train.batch_size=256",
            "train.accumulation=1",
            "train.batch_ramp=[]",
            "model.remat=full",
        ),
        (
            "model_name=gpt3-175b",
            # As many learned positions as the sequence has: its own 16,384 are 0.2 billion parameters that nothing uses.
            "override_model_config=true",
            "trainable_position_size=2048",
            "compile_topology=v5p-512",
            "compile_topology_num_slices=1",
            "ici_fsdp_parallelism=32",
            "ici_tensor_parallelism=8",
            "per_device_batch_size=1",
            "max_target_length=2048",
            "remat_policy=full",
            "attention=flash",
        ),
        "256 sequences of 2,048 tokens, FSDP over 32, tensor parallelism over 8, whole layers recomputed",
    ),
    "llama2-70b": Case(
        "tpu-v5p:4x4x4",
        "llama2-70b",
        (
            *("layout.data=64", "layout.model=1", "train.batch_size=256", "train.accumulation=1", "train.seq_len=4096"),
            "model.remat={query: keep, key: keep, value: keep, attn_proj: keep, mlp_out: keep}",
            "train.reduce_dtype=bfloat16",
        ),
        (
            "model_name=llama2-70b",
            "compile_topology=v5p-128",
            "compile_topology_num_slices=1",
            "remat_policy=save_dot_except_mlpwi",
            "per_device_batch_size=4",
            "max_target_length=4096",
            "use_iota_embed=true",
            "attention=flash",
        ),
        "256 sequences of 4,096 tokens, FSDP over 64, products kept but those into the feed-forward layer: MaxText's script for v5p",
    ),
    "llama3-405b": Case(
        "tpu-v6e:16x16*2",
        "llama3-405b",
        (
            *("layout.data=128", "layout.model=4", "layout.gather=layer", "train.batch_size=512", "train.batch_ramp=[]"),
            *("train.accumulation=1", "train.reduce_dtype=bfloat16"),
            "model.remat={block_in: offload, query: offload, key: offload, value: offload, attn_proj: offload}",
        ),
        (
            "model_name=llama3.1-405b",
            "compile_topology=v6e-256",
            "compile_topology_num_slices=2",
            "per_device_batch_size=1",
            "ici_fsdp_parallelism=64",
            "ici_tensor_parallelism=4",
            "dcn_fsdp_parallelism=2",
            "allow_split_physical_axes=true",
            "custom_mesh=hybrid_ring_64x4",
            "remat_policy=custom",
            *(f"{name}=offload" for name in ("decoder_layer_input", "query_proj", "key_proj", "value_proj", "out_proj")),
            "max_target_length=8192",
            "attention=flash",
            "use_iota_embed=true",
            *("sa_block_q=1024", "sa_block_q_dkv=2048", "sa_block_q_dq=2048"),
        ),
        "512 sequences of 8,192 tokens on two slices, FSDP over 128, tensor parallelism over 4; layers' inputs, queries, keys, values and "
        "what attention adds lie in the hosts' memory: MaxText's settings",
    ),
}


@dataclass(frozen=True)
class Program:
    """What came out of a compiler, and what the program contains."""

    name: str
    memory: dict[str, int]
    lower_seconds: float
    compile_seconds: float
    cpu_seconds: float
    """Of the whole process, which also starts Python and builds the model: beside other work steadier than seconds."""
    rss_bytes: int
    versions: dict[str, str]
    teraflops: dict[str, float] = field(default_factory=dict)
    step: dict[str, float] = field(default_factory=dict)
    """Seconds by the compiler's estimates, by term; `total` is their sum."""
    sent_gb: dict[str, float] = field(default_factory=dict)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--case", choices=CASES, default="gpt3-175b")
    parser.add_argument("--limit", type=int, default=1500, help="seconds that MaxText may take")
    parser.add_argument("--keep", type=Path, help="directory for the programs and numbers")
    parser.add_argument("--only", choices=("maxtext", "qianyi"), help="one of the two")
    options = parser.parse_args()
    case = CASES[options.case]
    print(f"{options.case} on {case.target}: {case.note}\n")
    found: list[Program] = []
    if options.only != "qianyi":
        found += of_maxtext(options.case, case, options.limit, options.keep)
    if options.only != "maxtext":
        found += of_qianyi(options.case, case, options.keep)
    print("\n".join(table(found)))


def of_maxtext(name: str, case: Case, limit: int, keep: Path | None) -> Iterator[Program]:
    with tempfile.TemporaryDirectory(prefix="maxtext-compile-") as directory:
        script = ROOT / "benchmarks/peers/maxtext_compile.py"
        command = [sys.executable, str(script), directory, *case.maxtext]
        before = cpu_seconds()
        try:
            done = subprocess.run(
                command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=False, timeout=limit
            )
        except subprocess.TimeoutExpired:
            print(f"MaxText: not compiled within {limit} s\n")
            return
        if not Path(directory, "result.json").exists():
            print("MaxText: not compiled:\n", "\n".join(done.stderr.splitlines()[-12:]))
            return
        result: dict[str, Any] = json.loads(Path(directory, "result.json").read_text())
        text = Path(directory, "program.txt").read_text()
    spent = cpu_seconds() - before
    yield read(f"{name}-maxtext", "MaxText", case, result, text, spent, keep)


def of_qianyi(name: str, case: Case, keep: Path | None) -> Iterator[Program]:
    before = cpu_seconds()
    try:
        made = compile_step(case.recipe, case.overrides, target(case.target))
    except CompileError as error:
        print(f"Qianyi: not compiled: {error}\n")
        return
    spent = cpu_seconds() - before
    yield read(f"{name}-qianyi", "Qianyi", case, asdict(made), made.text, spent, keep)


def cpu_seconds() -> float:
    """Of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def read(file: str, name: str, case: Case, result: dict[str, Any], text: str, spent: float, keep: Path | None) -> Program:
    module, aim = parse(text), target(case.target)
    time = timeline(module, pricing(module, aim, {"all": aim.n_devices}, "bf16").cost)
    program = Program(
        name,
        result["memory"],
        result["lower_seconds"],
        result["compile_seconds"],
        spent,
        result["compiler_rss_bytes"],
        result["versions"],
        teraflops_by_pass(module),
        by_term(time),
        sent_by_kind(module, aim.n_devices),
    )
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{file}.txt").write_text(text)
        (keep / f"{file}.json").write_text(json.dumps(asdict(program), indent=1))
    return program


def by_term(time: Timeline) -> dict[str, float]:
    sent = sum(seconds for term, seconds in time.terms.items() if " over " in term)
    own = {term: time.terms[term] for term in (PRODUCTS, ATTENTION, OTHER)}
    return {**own, "communication": sent, "copies": time.seconds - sent - sum(own.values()), "total": time.seconds}


def teraflops_by_pass(module: Module) -> dict[str, float]:
    total = Counter[str]()
    for product, times in flops(module).items():
        total[product.part] += times * product.flops / 1e12
    return dict(total)


def sent_by_kind(module: Module, n_devices: int) -> dict[str, float]:
    total = Counter[str]()
    for sent, times in count_sent(module).items():
        total[sent.kind] += times * bytes_per_device(sent, n_devices) / 1e9
    return {kind: gb for kind, gb in total.most_common() if gb >= 0.05}


def table(programs: list[Program]) -> Iterator[str]:
    yield "| | " + " | ".join(p.name for p in programs) + " |"
    yield "|---|" + "---:|" * len(programs)
    for label, values in rows(programs):
        yield f"| {label} | " + " | ".join(values) + " |"
    for p in programs:
        yield f"\n{p.name}: {', '.join(f'{name} {version}' for name, version in p.versions.items())}"


def rows(programs: list[Program]) -> Iterator[tuple[str, list[str]]]:
    """Labels, and the numbers of each program."""
    for label, key in (
        ("arguments", "argument"),
        ("temporary buffers", "temp"),
        ("peak", "peak_memory"),
        ("host, temporary", "host_temp"),
    ):
        yield f"{label}, GB", [f"{p.memory.get(key, 0) / 1e9:.2f}" for p in programs]
    together = [(p.memory["argument"] + p.memory["temp"] + p.memory["output"] - p.memory["alias"]) / 1e9 for p in programs]
    yield "arguments, temporary buffers and what of the result is in neither, GB", [f"{gb:.2f}" for gb in together]
    yield "lowering, s", [f"{p.lower_seconds:.1f}" for p in programs]
    yield "compilation, s", [f"{p.compile_seconds:.0f}" for p in programs]
    yield "processor time of the whole process, s", [f"{p.cpu_seconds:.0f}" for p in programs]
    yield "memory of the process, GB", [f"{p.rss_bytes / 1e9:.2f}" for p in programs]
    yield "TFLOP of products per chip", [f"{sum(p.teraflops.values()):.0f}" for p in programs]
    yield "of these recomputed", [f"{p.teraflops.get('recompute', 0) / sum(p.teraflops.values()):.1%}" for p in programs]
    yield "step by the compiler's estimates, s", [f"{p.step['total']:.2f}" for p in programs]
    for term in (PRODUCTS, ATTENTION, OTHER, "communication", "copies"):
        yield f"- {term}", [f"{p.step[term]:.2f}" for p in programs]
    for kind in sorted({kind for p in programs for kind in p.sent_gb}):
        yield f"sent by {kind}, GB per chip", [f"{p.sent_gb.get(kind, 0):.1f}" for p in programs]


if __name__ == "__main__":
    main()
