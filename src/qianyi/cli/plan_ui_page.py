"""The page of `qianyi plan --ui`: from the fields of a form to an answer in HTML.

The page is whole without its script (a form, its answer, the state in the address), which only saves pressing the button.
"""

import shlex
import time
from collections.abc import Mapping
from functools import cache, lru_cache
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined

from qianyi.cli.plan import PRECISIONS, question
from qianyi.cli.plan_ui_words import chinese, chinese_error
from qianyi.config import recipes
from qianyi.config.counts import parameter_count
from qianyi.config.load import load
from qianyi.config.summary import readable
from qianyi.errors import ConfigError, QianyiError
from qianyi.plan.chips import chip, chips
from qianyi.plan.cluster import make_cluster
from qianyi.plan.describe import explain, model_name, seconds_words
from qianyi.plan.output import plan_yaml
from qianyi.plan.picture import panels
from qianyi.plan.plan import Plan, Question, answer, sizes
from qianyi.plan.search import Choice
from qianyi.plan.svg import STYLE
from qianyi.plan.words import Say, english

FIELDS = {
    "recipe": "gpt3-175b",
    "params": "",
    "tokens": "",
    "chip": "h100",
    "shape": "128x8",
    "precision": "bf16",
    "deadline": "",
    "budget": "",
    "price": "",
}
"""Of the form, with what they hold at first; an empty one is not asked."""
Form = Mapping[str, str]


def say_in(lang: str) -> Say:
    return chinese if lang == "zh" else english


def solve(form: Form) -> tuple[Plan, float]:
    """The plan, and seconds that it took.

    Raises:
        QianyiError: a field is wrong, or there is no plan.
    """
    return _answered(_question(form))


@lru_cache(maxsize=16)
def _answered(asked: Question) -> tuple[Plan, float]:
    began = time.perf_counter()
    return answer(asked), time.perf_counter() - began


def _question(form: Form) -> Question:
    """Only shipped recipes and known chips: fields of a page name no files."""
    f = {name: form.get(name, "").strip() for name in FIELDS}
    if f["recipe"] and f["recipe"] not in recipes.names():
        raise ConfigError(f"unknown recipe `{f['recipe']}`")
    of = chip(f["chip"])
    where = make_cluster(of, f["shape"]).name if f["shape"] else of.name
    by_size = not f["recipe"]
    return question(
        f["recipe"] or None,
        [],
        where,
        params=f["params"] if by_size else None,
        tokens=f["tokens"] or None,
        precision=f["precision"] or None,
        deadline=f["deadline"] or None,
        budget=f["budget"] or None,
        price=f["price"] or None,
    )


def page_html(form: Form, lang: str) -> str:
    """The whole page."""
    return _render(
        "plan_ui.html",
        say_in(lang),
        lang=lang,
        form=form,
        other={**form, "lang": "en" if lang == "zh" else "zh"},
        style=STYLE,
        models=_models(),
        chips={of.name: f"{of.hbm_bytes / 1e9:.0f} GB, {of.bf16_flops / 1e12:,.0f} TFLOP/s" for of in chips()},
        shapes=_shapes(),
        precisions=list(PRECISIONS),
        answer=answer_html(form, lang),
    )


@cache
def _models() -> dict[str, str]:
    """Sizes of the shipped recipes, the smallest first."""
    counts = {name: parameter_count(load(name).config.model) for name in recipes.names()}
    return {name: readable(counts[name]) for name in sorted(counts, key=counts.__getitem__)}


@cache
def _shapes() -> dict[str, dict[int, str]]:
    """Of every chip: number -> how so many are joined."""
    return {of.name: {on.n_chips: on.name.partition(":")[2] for on in sizes(of)} for of in chips()}


def answer_html(form: Form, lang: str) -> str:
    """The part of the page that changes: a plan, or why there is none."""
    say = say_in(lang)
    try:
        plan, seconds = solve(form)
    except QianyiError as error:
        lines = [chinese_error(line) if lang == "zh" else line for line in str(error).splitlines()]
        return _render("plan_ui_error.html", say, lines=lines)
    return _render(
        "plan_ui_answer.html",
        say,
        plan=plan,
        name=model_name(plan, say),
        figures=_figures(plan, say),
        considered=say("{considered} layouts were considered, {fitting} fit, in {seconds} s.").format(
            considered=f"{plan.found.considered:,}", fitting=f"{plan.found.fitting:,}", seconds=f"{seconds:.2g}"
        ),
        panels=panels(plan, say),
        rows=[_row(choice, plan.best, say) for choice in plan.found.choices],
        yaml=plan_yaml(plan),
        explained=explain(plan),
        command=_command(plan, form),
        form={**form, "lang": lang},
    )


def _figures(plan: Plan, say: Say) -> list[tuple[str, str]]:
    """(value, what it is)."""
    run, best = plan.campaign, plan.best
    dollars, loss = run.bill.dollars, run.loss_range
    cost = (
        (f"{_dollars(dollars.low)}–{_dollars(dollars.high)}" if dollars.high > dollars.low else _dollars(dollars.low))
        if dollars
        else ""
    )
    failures = say("of the days advance the run; {n} failures expected").format(n=f"{run.interruptions:,.1f}")
    found = [
        (f"{run.wall_days:,.1f}", say("days")),
        (cost or "–", say("dollars") if cost else say("no price known")),
        (f"{plan.cluster.n_chips:,}", f"{plan.cluster.chip.name} {say('chips')}"),
        (f"{plan.mfu:.1%}", say("MFU")),
        (seconds_words(best.seconds), say("per step")),
        (f"{plan.tokens_per_second:,.0f}", say("tokens per second")),
        (f"{best.memory_bytes / 1e9:.1f} GB", say("of {all} GB per chip").format(all=f"{plan.cluster.chip.hbm_bytes / 1e9:.0f}")),
        (f"{run.time.effective_ratio:.1%}", failures),
    ]
    found += [(f"{run.bill.energy_kwh / 1e3:,.0f}", say("MWh"))] if run.bill.energy_kwh is not None else []
    return found + ([(f"{loss[0]:.2f}–{loss[1]:.2f}", say("expected loss, nats per token"))] if loss else [])


def _dollars(value: float) -> str:
    return f"${readable(round(value))}" if value >= 1e5 else f"${value:,.0f}"


def _row(choice: Choice, best: Choice, say: Say) -> tuple[str, str, str, str]:
    """Layout, time, memory, and the term that costs a runner-up most."""
    change = {name: choice.terms[name] - best.terms[name] for name in best.terms}
    most = max(change, key=change.__getitem__)
    why = f"+{seconds_words(change[most])} {say(most)}"
    if choice.seconds < best.seconds * 1.001:
        why = say("chosen") if choice is best else say("as fast, with more axes or more memory")
    words = say(choice.config.layout.words).replace(" x ", " × ")
    return words, seconds_words(choice.seconds), f"{choice.memory_bytes / 1e9:.1f} GB", why


def _command(plan: Plan, form: Form) -> str:
    asked = plan.question
    words = [
        "qianyi",
        "plan",
        *([asked.recipe] if asked.recipe else ["--params", form["params"]]),
        "--cluster",
        plan.cluster.name,
    ]
    for name in ("tokens", "precision", "deadline", "budget", "price"):
        value = form.get(name, "").strip()
        if value and (name, value) != ("precision", FIELDS["precision"]):
            words += [f"--{name}", value]
    return shlex.join([*words, "--out", "plan.yaml"])


def _render(template: str, say: Say, **values: Any) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = resources.files("qianyi.cli").joinpath(template).read_text(encoding="utf-8")
    return environment.from_string(text).render(say=say, **values)
