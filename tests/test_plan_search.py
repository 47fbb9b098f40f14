"""The search, against trying everything; plans as recipes; questions that have no answer."""

import csv
import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qianyi.config.check import check
from qianyi.config.load import load
from qianyi.config.schema import LayoutConfig
from qianyi.errors import ConfigError
from qianyi.plan.cluster import Cluster, cluster
from qianyi.plan.layouts import divisors
from qianyi.plan.output import plan_yaml
from qianyi.plan.plan import Question, answer, days, sizes
from qianyi.plan.predict import ADDED
from qianyi.plan.rows import published_rows
from qianyi.plan.search import LONGEST, cost, search
from qianyi.plan.size import amount

TINY = (
    *("model.n_layers=4", "model.d_model=256", "model.n_heads=4", "model.n_kv_heads=2", "model.head_dim=64", "model.d_ff=512"),
    *("model.vocab_size=1024", "train.seq_len=256", "train.batch_size=8", "train.batch_ramp=[]"),
)


def everything(recipe: str, overrides: tuple[str, ...], on: Cluster) -> list[tuple[float, float, str]]:
    """(seconds, bytes, layout) of every layout that the recipe's own rules accept, one after the other."""
    found: list[tuple[float, float, str]] = []
    n, base = on.n_chips, load(recipe, overrides).config
    axes = [a for a in product(divisors(n), repeat=6) if np.prod(a) == n]
    for (replica, stage, data, context, expert, model), accumulation in product(axes, divisors(8)):
        for chunks, zero, gather, remat in product((1, 2), range(4), ("layer", "step"), ("matmuls", "full", "none")):
            keys: dict[str, Any] = {
                **{"replica": replica, "stage": stage, "data": data, "context": context, "expert": expert, "model": model},
                **{"chunks": chunks, "zero": zero, "gather": "auto" if zero < 3 else gather},
            }
            if (zero < 3 and gather == "step") or (zero == 0 and data * context == 1):
                continue
            config = base.model_copy(
                update={
                    "layout": LayoutConfig(**keys),
                    "train": base.train.model_copy(update={"accumulation": accumulation}),
                    "model": base.model.model_copy(update={"remat": remat}),
                }
            )
            try:
                check(config)
            except ConfigError:
                continue
            choice = cost(config, on)
            found.append((choice.seconds, choice.memory_bytes, config.layout.words))
    return found


@pytest.mark.parametrize("recipe", ["llama3-8b", "mixtral-8x7b"])
def test_the_search_finds_the_optimum_of_everything(recipe: str) -> None:
    on = cluster("h100:1x4")
    overrides = (*TINY, *(("model.moe.d_ff=512",) if recipe == "mixtral-8x7b" else ()))
    every = everything(recipe, overrides, on)
    best = min(seconds for seconds, _, _ in every)
    found = search(recipe, on, list(overrides))
    assert found.choices[0].seconds == pytest.approx(best, rel=1e-3)
    assert found.considered >= len({words for _, _, words in every})
    least = min(needed for _, needed, _ in every)
    smallest = min(needed for seconds, needed, _ in every if seconds <= LONGEST * best)
    assert min(c.memory_bytes for c in found.front) == pytest.approx(smallest, rel=1e-9)
    assert found.least_bytes == pytest.approx(least, rel=1e-9)


def test_the_front_is_not_beaten() -> None:
    front = search("llama3-8b", cluster("h100:2x8")).front
    assert len(front) > 2
    for a in front:
        assert not any(b.seconds <= a.seconds and b.memory_bytes < a.memory_bytes for b in front)


@pytest.mark.parametrize(
    ("recipe", "on"),
    [
        ("gpt3-175b", "h100:128x8"),
        ("llama3-405b", "tpu-v5p:8x8x16"),
        ("llama3-405b", "tpu-v6e:16x16*4"),
        ("deepseek-v3", "h100:256x8"),
        ("palm-540b", "tpu-v4:12x16x16*2"),
        ("t5-11b", "a100:8x8"),
        ("bert-large", "v100:1x8"),
    ],
)
def test_a_plan_is_a_recipe(recipe: str, on: str, tmp_path: Path) -> None:
    """What the search chose passes the recipe's rules when it is read back, and costs the same."""
    plan = answer(Question(recipe=recipe, cluster=on))
    file = tmp_path / "plan.yaml"
    file.write_text(plan_yaml(plan))
    config = load(str(file)).config
    check(config, plan.cluster.n_chips)
    assert config.model_copy(update={"description": ""}) == plan.config.model_copy(update={"description": ""})
    assert cost(config, plan.cluster).seconds == pytest.approx(plan.best.seconds)
    assert plan.best.memory_bytes <= 0.92 * plan.cluster.chip.hbm_bytes
    assert sum(plan.best.terms.values()) == pytest.approx(plan.best.seconds)
    # The seconds of the run are those of its steps, those of the ramp included.
    run = plan.campaign
    assert run.time.productive_seconds == pytest.approx(sum(s.seconds for s in run.stages))
    assert run.stages[-1].seconds == pytest.approx(run.stages[-1].steps * plan.best.seconds)


def test_a_recipe_that_moves_activations_to_the_host_keeps_its_table(tmp_path: Path) -> None:
    table = {"attn_out": "keep", "mlp_up": "offload"}
    overrides = tuple(f"model.remat.{name}={what}" for name, what in table.items())
    plan = answer(Question(recipe="llama3-8b", cluster="h100:1x8", overrides=overrides))
    (tmp_path / "plan.yaml").write_text(plan_yaml(plan))
    assert load(str(tmp_path / "plan.yaml")).config.model.remat == table


def test_a_size_becomes_a_model_of_that_size() -> None:
    for size, on in ((1e8, "h100:1x8"), (7e9, "h100:8x8"), (175e9, "h100:128x8"), (1e12, "h100:512x8")):
        plan = answer(Question(params=size, tokens=20 * size, cluster=on))
        assert plan.best.case.model.params == pytest.approx(size, rel=0.1)
        assert plan.campaign.tokens == pytest.approx(20 * size, rel=0.02)


def test_without_a_number_of_chips_the_smallest_that_meets_the_deadline_is_found() -> None:
    plan = answer(Question(recipe="gpt3-175b", cluster="h100", deadline_days=30.0))
    assert plan.campaign.wall_days <= 30
    smaller = next(c for c in reversed(sizes(plan.cluster.chip)) if c.n_chips < plan.cluster.n_chips)
    with pytest.raises(ConfigError, match=r"the deadline is 30\.0"):
        answer(Question(recipe="gpt3-175b", cluster=smaller.name, deadline_days=30.0))


def test_the_fastest_precision_is_found() -> None:
    matmuls = {"native": "bf16", "fp8": "fp8", "int8": "int8"}
    each = {m: answer(Question(recipe="llama3-8b", cluster="h100:2x8", precisions=(m,))).best.seconds for m in matmuls}
    chosen = answer(Question(recipe="llama3-8b", cluster="h100:2x8", precisions=tuple(matmuls)))
    assert chosen.best.seconds == min(each.values()) < each["native"]
    # A chip without 8-bit units has but one.
    assert answer(Question(recipe="llama3-8b", cluster="tpu-v3:4x8", precisions=tuple(matmuls))).config.model.matmul == "native"


def test_a_fixed_axis_stays() -> None:
    plan = answer(Question(recipe="gpt3-175b", cluster="h100:16x8", axes=(("model", 8), ("stage", 4))))
    assert (plan.config.layout.model, plan.config.layout.stage) == (8, 4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("gpt3-175b", "--cluster", "h1000:1x8"), "unknown chip `h1000`; did you mean `h100`?"),
        (("gpt3-175b", "--cluster", "h100:1x16"), "16 chips are h100:2x8"),
        (("gpt3-175b", "--cluster", "tpu-v5p:8x8"), "a torus of 3 dimensions; expected AxBxC"),
        (("gpt3-175b", "--cluster", "tpu-v5e:32x32"), "more than a pod of 256; several slices are written SHAPE*SLICES"),
        (("gpt3-175b", "--cluster", "h100"), "give --deadline or --budget"),
        (("gpt3-175b", "--cluster", "h100:1x8"), "nothing fits: the smallest layout needs"),
        (("gpt3-175b", "--cluster", "h100:128x8", "--deadline", "2d"), "as many chips (--cluster h100 finds how many)"),
        (("gpt3-175b", "--cluster", "h100:128x8", "--deadline", "soon"), "expected days (30d), hours (12h) or a date"),
        (("gpt3-175b", "--cluster", "h100:128x8", "--budget", "10k"), "the budget is $10,000: it pays for"),
        (("gpt3-175b", "--cluster", "h100:128x8", "--precision", "fp16"), "expected bf16, fp8, int8, auto; did you mean"),
        (("gpt3-175b", "--cluster", "a100:128x8", "--precision", "fp8"), "a100 has no units for fp8; choose bf16"),
        (("gpt3-175b", "--cluster", "h100:128x8", "--layout", "tensor=8"), "unknown axis `tensor`"),
        (("gpt3-175b", "--cluster", "h100:128x8", "--layout", "model=7"), "no layout with layout.model=7"),
        (("gpt3-175b",), "say where, such as --cluster h100:128x8"),
        (("--cluster", "h100:1x8"), "name a RECIPE, or a size with --params and --tokens"),
        (("--cluster", "h100:1x8", "--params", "7b"), "say --tokens too"),
        (("--cluster", "h100:1x8", "--params", "many", "--tokens", "1b"), "--params many: expected a number above 0"),
        (("gpt3-175b", "--rows", "missing.csv"), "say where the table goes with --out"),
        (("gpt3-175b", "--cluster", "mine.yaml"), "mine.yaml: "),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(arguments: tuple[str, ...], said: str) -> None:
    done = subprocess.run([sys.executable, "-m", "qianyi", "plan", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_cluster_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "chip: h100\nshape: 128x8\nhbm_gb: 94\nnetwork_between_hosts: fat_tree\noversubscription: 4\nprice_usd_per_hour: 2\n"
    )
    mine = cluster(str(file))
    assert mine.n_chips == 1024
    assert mine.chip.hbm_bytes == 94e9
    assert mine.far_bytes_per_second == 50e9 / 4
    slower = answer(Question(recipe="llama3-8b", cluster=str(file)))
    usual = answer(Question(recipe="llama3-8b", cluster="h100:128x8"))
    assert slower.best.seconds >= usual.best.seconds
    assert slower.campaign.bill.dollars is not None
    assert slower.campaign.bill.dollars.low == pytest.approx(2 * slower.campaign.bill.chip_hours)
    file.write_text("chip: h100\nshape: 128x8\nhbm: 94\n")
    with pytest.raises(ConfigError, match="unknown key `hbm`; did you mean `hbm_gb`"):
        cluster(str(file))


def test_options_and_json(tmp_path: Path) -> None:
    out, rows = tmp_path / "plan.yaml", tmp_path / "rows.csv"
    command = [sys.executable, "-m", "qianyi", "plan"]
    asked = ["llama3-8b", "--cluster", "h100:1x8", "--json", "--out", str(out)]
    done = subprocess.run([*command, *asked], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["chips"] == 8
    assert sum(found["memory_bytes_by_term"].values()) == pytest.approx(found["memory_bytes_per_chip"])
    assert sum(found["step_seconds_by_term"].values()) == pytest.approx(found["step_seconds"])
    check(load(str(out)).config, 8)

    table = tmp_path / "table.csv"
    some = [*published_rows()[:5], {**published_rows()[0], "d_model": ""}, {**published_rows()[0], "chip": "Abacus"}]
    some += [{**published_rows()[0], "heads": "48", "kv_heads": "36"}, {**published_rows()[0], "fsdp_or_zero_stage": "all"}]
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(some[0]))
        writer.writeheader()
        writer.writerows(some)
    subprocess.run([*command, "--rows", str(table), "--out", str(rows)], capture_output=True, text=True, check=True)
    with rows.open(newline="") as file:
        predicted = list(csv.DictReader(file))
    assert list(predicted[0]) == [*some[0], *ADDED]
    assert [bool(row["reason"]) for row in predicted] == [False] * 5 + [True] * 4
    assert predicted[5]["reason"] == "d_model is not given"
    assert predicted[7]["reason"] == "n_heads 48 is not a multiple of n_kv_heads 36"
    for row in predicted[:5]:
        rate = float(row["predicted_tokens_per_s_per_chip"]) * float(row["predicted_step_seconds"]) * float(row["chips"])
        assert rate == pytest.approx(float(row["global_batch_sequences"]) * float(row["seq_len"]), rel=1e-4)


def test_words_for_amounts_and_days() -> None:
    from datetime import date

    assert [amount(text, "x") for text in ("175b", "1.5T", "2,000", "300m")] == [175e9, 1.5e12, 2000, 3e8]
    today = date(2026, 11, 25)
    assert [days(text, today) for text in ("30d", "12h", "45", "2026-12-25")] == [30, 0.5, 45, 30]
    with pytest.raises(ConfigError, match="the day has passed"):
        days("2026-11-25", today)
