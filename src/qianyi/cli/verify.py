"""`qianyi verify`: a certificate that a layout computes what one device computes."""

import os
import sys
import time
from dataclasses import replace
from importlib import resources
from pathlib import Path

import jax
import numpy as np
import yaml
from jinja2 import Environment, StrictUndefined

from qianyi.cli.layout import layout_overrides
from qianyi.config import recipes
from qianyi.config.load import load
from qianyi.config.schema import AXES, Config, LayoutConfig, RunConfig
from qianyi.data.stage import write_json, write_text
from qianyi.errors import ConfigError, QianyiError
from qianyi.parallel.runtime import initialize
from qianyi.verify.certificate import Certificate, certify
from qianyi.verify.shrink import shrink

MAX_DEVICES = 8
QUICK_COMPILER = "--xla_backend_optimization_level=0" + (
    " --xla_cpu_use_fusion_emitters=false" if jax.__version_info__ < (0, 11) else ""
)
"""Most of a certificate's time goes into code generation for the CPU, below what it is about. So compiled, a ring takes 1.1 s against 3.8 s
with the first option alone (AMD EPYC, one thread). JAX 0.12 no longer knows the second, and stops at what it does not know."""
DENSE_SPREAD = (
    "data=8,zero=1",
    "data=4,model=2,zero=2",
    "replica=2,data=2,model=2,gather=layer",
    "stage=2,data=2,model=2,gather=layer",
    "stage=4,chunks=2,data=2,zero=1",
    "context=4,data=2",
    "stage=2,context=2,model=2",
)
EXPERT_SPREAD = ("expert=4,model=2", "stage=2,context=2,expert=2", "expert=2,context=2,data=2,zero=2")


class DifferentError(QianyiError):
    """A layout does not compute what one device computes."""


def run(recipe: str, overrides: list[str], layout: str | None, directory: Path) -> None:
    """Certify one layout."""
    config = load(recipe, [*overrides, *layout_overrides(layout)] if layout else overrides).config
    target = config.layout if layout else small_layout(config.layout)
    _start_devices(target.n_devices)
    certificate = certify(config, target, say=lambda what: print(f"  {what} ...", file=sys.stderr, flush=True))
    write(certificate, f"{recipe} on {target.words}", directory)
    _print(certificate)
    print(f"{directory / 'certificate.json'}, {directory / 'certificate.html'}")
    if not certificate.passed:
        raise DifferentError(_sentence(certificate))


def run_all(directory: Path) -> None:
    """Certify every shipped recipe on a spread of layouts, except those that it refuses. Recipes that differ only in size are the same when
    small (nine of the GPTs are): such a small recipe runs once per layout, and its certificate holds for all of them."""
    _start_devices(MAX_DEVICES)
    began_seconds = time.perf_counter()
    ran: dict[str, Certificate] = {}
    certificates: dict[str, Certificate] = {}
    for recipe in recipes.names():
        spread = DENSE_SPREAD if load(recipe, []).config.model.mixture is None else (*DENSE_SPREAD, *EXPERT_SPREAD)
        for layout in spread:
            config = load(recipe, layout_overrides(layout)).config
            small = shrink(config, config.layout)
            try:
                certificate = replace(_certify_once(config, small, ran), small=small)
            except ConfigError as error:  # this family and this layout do not go together
                print(f"{recipe:16} {layout:34} refused: {str(error).splitlines()[0]}", flush=True)
                continue
            write(certificate, f"{recipe} on {config.layout.words}", directory / recipe / layout.replace(",", "_"))
            print(f"{recipe:16} {layout:34} {_sentence(certificate)}", flush=True)
            certificates[f"{recipe} {layout}"] = certificate
    minutes = (time.perf_counter() - began_seconds) / 60
    print(f"{len(certificates)} certificates from {len(ran)} small recipes in {minutes:.0f} minutes; the largest differences:")
    print("\n".join(_largest(certificates)))
    if failed := [name for name, certificate in certificates.items() if not certificate.passed]:
        raise DifferentError(f"{len(failed)} layouts differ from one device: {'; '.join(failed)}; see {directory}")


def _certify_once(config: Config, small: Config, ran: dict[str, Certificate]) -> Certificate:
    """The certificate of a small recipe, from `ran` where one that computes the same has run."""
    idle = {"eval_every", "eval_batches"}
    computed = small.model_dump_json(exclude={"description": True, "data": True, "run": True, "checkpoint": True, "train": idle})
    if computed not in ran:
        ran[computed] = certify(config, config.layout)
    return ran[computed]


def _largest(certificates: dict[str, Certificate]) -> list[str]:
    """For every kind of check the largest error, and whose it is."""
    found = [(c, name) for name, certificate in certificates.items() for c in certificate.checks]
    lines: list[str] = []
    for kind in dict.fromkeys(c.name for c, _ in found):
        c, name = max((pair for pair in found if pair[0].name == kind), key=lambda pair: np.nan_to_num(pair[0].error, nan=np.inf))
        lines.append(f"{kind:58} {c.error:8.1e}  (allowed {c.limit:.0e})  {name}: {c.worst}")
    return lines


def small_layout(layout: LayoutConfig) -> LayoutConfig:
    """The recipe's own layout on at most MAX_DEVICES: every axis in use has two devices, as far as they go."""
    sizes: dict[str, int] = dict.fromkeys(AXES, 1)
    left = MAX_DEVICES
    for axis in ("stage", "model", "context", "expert", "data", "replica"):
        if layout.sizes[axis] > 1 and left > 1:
            sizes[axis] = 2
            left //= 2
    return layout.model_copy(update=sizes)


def write(certificate: Certificate, title: str, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    found = certificate.as_json()
    template = resources.files("qianyi.verify").joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(template).render(
        title=title, sentence=_sentence(certificate), certificate=found, recipe=yaml.safe_dump(found["recipe"], sort_keys=False)
    )
    write_json(directory / "certificate.json", found)
    write_text(directory / "certificate.html", page)


def _start_devices(n: int) -> None:
    os.environ["XLA_FLAGS"] = f"{QUICK_COMPILER} {os.environ.get('XLA_FLAGS', '')}"
    initialize(RunConfig(platform="cpu", virtual_devices=n))


def _print(certificate: Certificate) -> None:
    for c in certificate.checks:
        print(f"{c.name:44} {c.error:8.1e}  (allowed {c.limit:.0e})  {'' if c.passed else 'DIFFERENT  '}{c.worst}")
    print("a device sends, per step of the small recipe:")
    for s in certificate.collectives:
        print(f"  {s.kind:20} over {s.axes:24} {s.count:6,} x, {s.bytes_per_device:12,} bytes")
    print(_sentence(certificate))


def _sentence(certificate: Certificate) -> str:
    worst = certificate.leaves[0]
    if certificate.passed:
        return f"equal: this layout computes what one device computes (worst gradient {worst.name}, {worst.error:.1e})"
    wrong = ", ".join(f"{c.name} by {c.error:.1e} at {c.worst}" for c in certificate.checks if not c.passed)
    return f"DIFFERENT from one device: {wrong}"
