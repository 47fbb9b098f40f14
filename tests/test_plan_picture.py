"""The picture of a plan: its numbers are the plan's, and no words lie on others."""

import re
from functools import cache
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from qianyi.config.pipeline import passes
from qianyi.parallel.schedule import make_schedule
from qianyi.plan.describe import seconds_words
from qianyi.plan.picture import MEMORY_COLOURS, TIME_COLOURS, panels, picture
from qianyi.plan.plan import Plan, Question, answer
from qianyi.plan.timeline import BACKWARD_COST, FORWARD_COST, timeline
from qianyi.plan.words import chinese

QUESTIONS = {
    "stages": Question(recipe="gpt3-6.7b", cluster="a100:4x8", axes=(("stage", 4),)),
    "interleaved": Question(recipe="gpt3-175b", cluster="h100:32x8", axes=(("stage", 8), ("model", 8))),
    "experts": Question(recipe="mixtral-8x7b", cluster="tpu-v5p:4x4x4", axes=(("expert", 8),)),
    "size": Question(params=7e9, tokens=140e9, cluster="h100:1x8"),
}


@cache
def plan_of(name: str) -> Plan:
    return answer(QUESTIONS[name])


def words_of(svg: str) -> list[str]:
    """Of well-formed XML, or there is an error."""
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def boxes_of(svg: str, fill: str) -> list[tuple[float, float]]:
    """(width, height) of rectangles of a colour."""
    found = [e.attrib for e in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}rect") if e.get("fill") == fill]
    return [(float(e["width"]), float(e["height"])) for e in found]


@pytest.mark.parametrize("name", QUESTIONS)
def test_words_are_the_plans_numbers(name: str) -> None:
    plan = plan_of(name)
    words = words_of(picture(plan))
    best = plan.best
    assert f"{best.memory_bytes / 1e9:.1f} of {plan.cluster.chip.hbm_bytes / 1e9:.0f} GB" in words
    for value in best.memory.values():
        assert not value or f"{value / 1e9:.3g} GB" in words
    for value in best.terms.values():
        assert value < 5e-3 * best.seconds or seconds_words(value) in words
    for choice in (*plan.found.choices, *plan.found.front):
        assert choice.config.layout.words.replace(" x ", " × ") in words
        assert any(word.startswith(seconds_words(choice.seconds)) for word in words)
    assert ("Pipeline" in words) == (plan.config.layout.stage > 1)


@pytest.mark.parametrize("name", QUESTIONS)
def test_bars_are_as_long_as_the_plans_numbers(name: str) -> None:
    plan = plan_of(name)
    memory, time, front, *_ = panels(plan)
    for part, value in plan.best.memory.items():
        stacked = [width for width, height in boxes_of(memory.svg(), MEMORY_COLOURS[part]) if height == 26]
        assert sum(stacked) == pytest.approx(memory.width * value / plan.cluster.chip.hbm_bytes, abs=0.06)
    longest = max(choice.seconds for choice in plan.found.choices)
    for term in plan.best.terms:
        drawn = sum(width for width, height in boxes_of(time.svg(), TIME_COLOURS[term]) if height in {24, 13})
        meant = sum(choice.terms[term] for choice in plan.found.choices)
        assert drawn == pytest.approx(time.width * meant / longest, abs=0.3)
    dots = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', front.svg())]
    assert len(dots) == len(plan.found.front)
    for (x, y), (x2, y2), one, other in zip(dots, dots[1:], plan.found.front, plan.found.front[1:], strict=False):
        assert x - x2 == pytest.approx(
            (480 - 58) * (one.memory_bytes - other.memory_bytes) / plan.cluster.chip.hbm_bytes, abs=0.2
        )
        assert y >= y2


@pytest.mark.parametrize(("kind", "stages", "microbatches", "chunks"), [("1f1b", 4, 8, 1), ("gpipe", 4, 6, 1), ("1f1b", 2, 4, 2)])
def test_the_timeline_is_the_table_that_training_executes(kind: str, stages: int, microbatches: int, chunks: int) -> None:
    found, table = timeline(kind, stages, microbatches, chunks), make_schedule(kind, stages, microbatches, chunks)
    assert found.cut is None
    assert found.length == table.makespan(FORWARD_COST, BACKWARD_COST) * chunks
    busy = sum(p.cost for p in found.passes)
    assert 1 - busy / (found.length * stages) == pytest.approx(table.bubble(FORWARD_COST, BACKWARD_COST))
    forward, backward = passes(kind, stages, microbatches, chunks)
    assert len(found.passes) == len(forward) + len(backward)
    for stage in range(stages):
        row = sorted((p.start, p.start + p.cost) for p in found.passes if p.stage == stage)
        assert all(end <= begin for (_, end), (begin, _) in pairwise(row))


def test_a_long_timeline_leaves_out_the_middle_alone() -> None:
    whole, cut = timeline("1f1b", 4, 12, 1), timeline("1f1b", 4, 200, 1)
    assert whole.cut is None
    assert cut.cut is not None
    assert cut.length < 2 * whole.length
    ends = [{(p.stage, p.microbatch, p.start - t.length) for p in t.passes} for t in (whole, cut)]
    last = {(stage, m - 12, start) for stage, m, start in ends[0] if start > -20}
    assert last == {(stage, m - 200, start) for stage, m, start in ends[1] if start > -20}
    first = [{(p.stage, p.microbatch, p.start) for p in t.passes if p.start < 20} for t in (whole, cut)]
    assert first[0] == first[1]


def test_no_words_lie_on_others() -> None:
    from browser import OVERLAPS, chromium

    with chromium() as browser:
        page = browser.new_page()
        for name in QUESTIONS:
            for svg in (picture(plan_of(name)), picture(plan_of(name), chinese)):
                page.set_content(svg)
                assert page.evaluate(OVERLAPS) == [], name
                outside = page.evaluate(
                    "() => [...document.querySelectorAll('svg text')].filter(t => t.getBoundingClientRect().right > "
                    "document.querySelector('svg').getBoundingClientRect().right - 20).map(t => t.textContent)"
                )
                assert outside == [], name
