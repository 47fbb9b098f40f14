"""A plan in words and tables."""

from collections.abc import Iterable, Mapping

from qianyi.config.counts import MFU_CONVENTION, parameter_count
from qianyi.config.summary import readable
from qianyi.plan.formulas import MEMORY, TIME
from qianyi.plan.plan import Plan, checkpoint_size_bytes
from qianyi.plan.search import USABLE, Choice
from qianyi.plan.words import Say, english

BAR = 32
"""Characters of the longest bar."""


def describe(plan: Plan) -> str:
    """The answer: layout, memory, time, the whole run, and why not another."""
    parts = [_head(plan), _memory(plan), _time(plan), _run(plan), _why(plan), _front(plan)]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def model_name(plan: Plan, say: Say = english) -> str:
    """The recipe's name and size; of a model by its size, the size."""
    size = say("{params} parameters").format(params=readable(parameter_count(plan.config.model)))
    return size if plan.question.recipe is None else f"{plan.recipe} ({size})"


def _head(plan: Plan) -> list[str]:
    best, m, layout = plan.best, plan.config.model, plan.config.layout
    how = [f"ZeRO {layout.zero}"] if layout.data * layout.context > 1 else []
    how += [f"{layout.chunks} chunks per stage"] if layout.chunks > 1 else []
    how += [f"{plan.config.train.accumulation} microbatches", f"remat {m.remat}" if isinstance(m.remat, str) else "remat by name"]
    return [
        f"{model_name(plan)} on {plan.cluster.name}: {plan.cluster.n_chips:,} chips",
        f"  layout       {layout.words} ({', '.join(how)})",
        f"  step         {seconds_words(best.seconds)} for {readable(plan.config.train.batch_size * plan.config.train.seq_len)} tokens, "
        f"{plan.tokens_per_second:,.0f} tokens/s, {plan.tokens_per_second / plan.cluster.n_chips:,.0f} per chip",
        f"  MFU          {plan.mfu:.1%} of {plan.cluster.chip.bf16_flops / 1e12:,.4g} TFLOP/s ({MFU_CONVENTION})",
    ]


def _memory(plan: Plan) -> list[str]:
    best, hbm = plan.best, plan.cluster.chip.hbm_bytes
    title = f"Memory per chip: {best.memory_bytes / 1e9:.1f} of {hbm / 1e9:.0f} GB (a plan fills {USABLE:.0%} at most)"
    return [title, *_bars(best.memory, 1e9, "GB", hbm)]


def _time(plan: Plan) -> list[str]:
    return [f"Time of a step: {seconds_words(plan.best.seconds)}", *_bars(plan.best.terms, 1.0, "s", plan.best.seconds)]


def _bars(values: Mapping[str, float], unit: float, name: str, whole: float) -> list[str]:
    lines = [
        f"  {label:14} {value / unit:10.3g} {name}  {'#' * round(BAR * value / whole)}"
        for label, value in values.items()
        if value >= whole * 5e-4
    ]
    return [line.rstrip() for line in lines]


def _run(plan: Plan) -> list[str]:
    run = plan.campaign
    bill, lost = run.bill, run.time
    dollars = f"${bill.dollars.low:,.0f} to ${bill.dollars.high:,.0f}" if bill.dollars else "no price known (--price)"
    lines = [
        f"The whole run: {run.steps:,} steps, {readable(run.tokens)} tokens, {run.flops:.3g} model FLOPs",
        f"  days         {run.wall_days:.1f}, of which {run.productive_days:.1f} advance it (goodput {lost.effective_ratio:.1%})",
        f"  failures     {run.interruptions:.1f} expected; a checkpoint every {run.checkpoint_steps:,} steps "
        f"({seconds_words(run.checkpoint_seconds)})",
        f"  checkpoints  of {checkpoint_size_bytes(plan.config) / 1e12:.2f} TB; {run.assumptions[1]}",
        f"  chip-hours   {bill.chip_hours:,.0f}; {dollars}",
    ]
    if bill.energy_kwh is not None:
        lines.append(
            f"  energy       {bill.energy_kwh / 1e3:,.0f} MWh"
            + (f", {bill.carbon_tonnes:,.0f} t CO2e" if bill.carbon_tonnes else "")
        )
    if run.loss_range:
        lines.append(
            f"  loss         {run.loss_range[0]:.2f} to {run.loss_range[1]:.2f} nats per token (Hoffmann et al. 2022 and its re-fit)"
        )
    for best in run.optima[:1]:
        lines.append(
            f"  same FLOPs   best spent on {readable(best.params)} parameters and {readable(best.tokens)} tokens ({best.law})"
        )
    return lines


def _why(plan: Plan) -> list[str]:
    found = plan.found
    lines = [f"Considered {found.considered:,} layouts; {found.fitting:,} fit."]
    lines += [f"  {_line(c)}  {_lost(c, plan.best)}" for c in found.choices[1:]]
    return lines


def _line(c: Choice) -> str:
    return f"{seconds_words(c.seconds):>9} {c.memory_bytes / 1e9:6.1f} GB  {c.config.layout.words}"


def _lost(other: Choice, best: Choice) -> str:
    """The term that costs the other most, and the one that saves it most."""
    change = {name: other.terms[name] - best.terms[name] for name in best.terms}
    worst, saved = max(change, key=change.__getitem__), min(change, key=change.__getitem__)
    if other.seconds < best.seconds * 1.001:
        return "as fast, with more axes or more memory"
    words = f"+{seconds_words(change[worst])} {worst}"
    return words + (f", {seconds_words(-change[saved])} less {saved}" if change[saved] < -0.01 * best.seconds else "")


def _front(plan: Plan) -> list[str]:
    if len(plan.found.front) < 2:
        return []
    return ["Fastest for their memory:", *(f"  {_line(c)}" for c in plan.found.front)]


def explain(plan: Plan) -> str:
    """Every term with its value, formula and source."""
    best = plan.best
    lines = ["How the numbers come about", "", "Time of a step, of the busiest stage:"]
    lines += _terms(TIME, {name: seconds_words(value) for name, value in best.terms.items()})
    lines += ["", "Memory of the fullest chip:"]
    lines += _terms(MEMORY, {name: f"{value / 1e9:.3g} GB" for name, value in best.memory.items()})
    lines += ["", "Assumed:", *_listed(plan.campaign.assumptions)]
    lines += [
        "",
        "Laws of the loss:",
        *_listed(
            f"{f.law}: {f.loss:.3f} nats, {f.extrapolation:.3g} x beyond its runs; {f.source}" for f in plan.campaign.losses
        ),
    ]
    return "\n".join(lines) + "\n"


def _terms(formulas: Mapping[str, tuple[str, str]], values: Mapping[str, str]) -> list[str]:
    lines: list[str] = []
    for name, (formula, source) in formulas.items():
        lines += [f"  {name}: {values[name]}", f"      {formula}", f"      source: {source}"]
    return lines


def _listed(words: Iterable[str]) -> list[str]:
    return [f"  - {word}" for word in words]


def seconds_words(value: float) -> str:
    if value >= 600:
        return f"{value / 60:.0f} min"
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"
