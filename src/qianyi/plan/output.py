"""A plan as files: a recipe that the other verbs take, and numbers for programs."""

from typing import Any

from qianyi.config.load import load
from qianyi.config.source import inline
from qianyi.plan.describe import model_name
from qianyi.plan.plan import Plan


def plan_yaml(plan: Plan) -> str:
    """The recipe with the layout that was chosen: `qianyi train plan.yaml` takes it as it is."""
    run, best = plan.campaign, plan.best
    lines = [
        f"# Planned for {plan.cluster.name}: {best.seconds:.3g} s per step, MFU {plan.mfu:.1%}, {best.memory_bytes / 1e9:.1f} GB per chip,",
        f"# {run.wall_days:.1f} days for {run.tokens / 1e9:,.1f}B tokens. Layout: {best.config.layout.words}.",
        f"extends: {plan.recipe}",
        f"description: {inline(f'{model_name(plan)}, planned for {plan.cluster.name}')}",
    ]
    return "\n".join([*lines, *_tree(_changed(plan))]) + "\n"


def _changed(plan: Plan) -> dict[str, Any]:
    """Keys whose value differs from the recipe's, as a tree."""
    tree: dict[str, Any] = {}
    before, after = (c.model_dump(mode="json") for c in (load(plan.recipe).config, plan.config))
    for key in {override.partition("=")[0] for override in plan.overrides}:
        path, at, old, new = key.split("."), tree, before, after
        # Down to a value, or to where one of both configs has one: `model.remat` is a word or a table.
        while len(path) > 1 and isinstance(old[path[0]], dict) and isinstance(new[path[0]], dict):
            at, old, new = at.setdefault(path[0], {}), old[path[0]], new[path[0]]
            path = path[1:]
        if old[path[0]] != new[path[0]]:
            at[path[0]] = new[path[0]]
    return tree


def _tree(tree: dict[str, Any], indent: int = 0) -> list[str]:
    lines: list[str] = []
    for key, value in sorted(tree.items()):
        if value == {}:
            continue
        if isinstance(value, dict):
            lines += [" " * indent + f"{key}:", *_tree(value, indent + 2)]
        else:
            lines.append(" " * indent + f"{key}: {inline(value)}")
    return lines


def summary_json(plan: Plan) -> dict[str, Any]:
    """What `--json` prints."""
    run, best = plan.campaign, plan.best
    return {
        "recipe": plan.recipe,
        "cluster": plan.cluster.name,
        "chips": plan.cluster.n_chips,
        "overrides": list(plan.overrides),
        "layout": best.config.layout.sizes,
        "step_seconds": best.seconds,
        "step_seconds_by_term": best.terms,
        "tokens_per_second": plan.tokens_per_second,
        "mfu": plan.mfu,
        "memory_bytes_per_chip": best.memory_bytes,
        "memory_bytes_by_term": best.memory,
        "hbm_bytes_per_chip": plan.cluster.chip.hbm_bytes,
        "tokens": run.tokens,
        "steps": run.steps,
        "productive_days": run.productive_days,
        "days": run.wall_days,
        "chip_hours": run.bill.chip_hours,
        "dollars": [run.bill.dollars.low, run.bill.dollars.high] if run.bill.dollars else None,
        "energy_kwh": run.bill.energy_kwh,
        "carbon_tonnes": run.bill.carbon_tonnes,
        "interruptions": run.interruptions,
        "goodput": run.time.effective_ratio,
        "checkpoint_steps": run.checkpoint_steps,
        "loss_range": list(run.loss_range) if run.loss_range else None,
        "layouts_considered": plan.found.considered,
        "layouts_fitting": plan.found.fitting,
        "runners_up": [
            {"layout": c.config.layout.sizes, "step_seconds": c.seconds, "memory_bytes_per_chip": c.memory_bytes}
            for c in plan.found.choices[1:]
        ],
        "front": [
            {"layout": c.config.layout.sizes, "step_seconds": c.seconds, "memory_bytes_per_chip": c.memory_bytes}
            for c in plan.found.front
        ],
    }
