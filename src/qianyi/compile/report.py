"""A compile report: one page and its numbers, in a directory."""

import shlex
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from qianyi.compile.fingerprint import FILE
from qianyi.compile.outcome import Outcome
from qianyi.data.stage import write_json, write_text

TIME_NOTE = {
    "tpu": "The compiler's cycles for each operation of the schedule; attention and collectives as in the plan. Cycles are not a "
    "measurement (docs/accuracy.md).",
    "cuda": "A roofline over the schedule: every operation as long as its products or its bytes take at the chip's rates, whichever is "
    "longer; attention and collectives as in the plan. Nothing is known of launches and clocks (docs/accuracy.md).",
}


def write_report(outcome: Outcome, directory: Path) -> None:
    """Writes compile.json, compile.html and, of what was compiled, fingerprint.json and program.txt."""
    directory.mkdir(parents=True, exist_ok=True)
    found = outcome.as_json()
    template = resources.files("qianyi.compile").joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pairs = found["plan"].get("beside", {}).values()
    page = environment.from_string(template).render(
        title=f"{outcome.recipe} on {outcome.target.cluster.name}",
        layout=f"Layout: {outcome.config.layout.words}.",
        sentence=sentence(outcome),
        time_note=TIME_NOTE[outcome.target.platform],
        found=found,
        longest=max((max(t["program"], t["plan"]) for t in pairs), default=1.0),
        command=command(outcome),
    )
    write_json(directory / "compile.json", found)
    write_text(directory / "compile.html", page)
    if outcome.compiled is not None:
        write_json(directory / FILE, outcome.fingerprint())
        write_text(directory / "program.txt", outcome.compiled.text)


def sentence(outcome: Outcome) -> str:
    """The verdict."""
    needed, hbm, chip = outcome.result.needed_bytes / 1e9, outcome.result.hbm_bytes / 1e9, outcome.target.cluster.chip.name
    if outcome.fits:
        return f"fits: {needed:.1f} of {hbm:.0f} GB per device of {chip}"
    return f"does not fit: {needed:.1f} GB per device, {chip} has {hbm:.1f}; {needed - hbm:.1f} GB too many"


def command(outcome: Outcome) -> str:
    return shlex.join(["qianyi", "compile", outcome.recipe, *outcome.overrides, "--target", outcome.target.cluster.name])
