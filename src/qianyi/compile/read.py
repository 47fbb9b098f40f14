"""A compiled step, read: memory, communication, products, time, and what is wrong with it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import yaml

from qianyi.compile.compilers import Compiled
from qianyi.compile.costs import ATTENTION, PRODUCTS, Pricing, pricing
from qianyi.compile.findings import Finding, findings
from qianyi.compile.flops import Flops, count_flops
from qianyi.compile.target import Target
from qianyi.config.schema import Config
from qianyi.parallel.pipeline import BACKWARD, FORWARD, LOSS
from qianyi.plan.build import precision_of
from qianyi.program.collectives import SLICES, Sent, bytes_per_device, count_sent, crossed
from qianyi.program.flops import flops
from qianyi.program.hlo import Module, parse
from qianyi.program.memory import Buffer, Peak, replay
from qianyi.program.runs import Taken, always
from qianyi.program.timeline import Timeline, timeline
from qianyi.train.stages import schedule_of

N_BUFFERS = 12
"""Of the largest that are listed."""


@dataclass(frozen=True)
class SentOver:
    """Collectives of one kind over the same axes, in one step of one device."""

    kind: str
    axes: str
    link: str
    """`chip links`, `network between hosts`, `network between slices`."""
    count: int
    bytes_per_device: int
    seconds: float
    """On their links, one after the other."""
    exposed_seconds: float
    """For which the chip waits."""

    @property
    def hidden_share(self) -> float:
        """How much of it happens while the chip computes."""
        return max(0.0, 1 - self.exposed_seconds / self.seconds) if self.seconds else 0.0


@dataclass(frozen=True)
class Held:
    """A large buffer at the fullest moment."""

    bytes: int
    shape: str
    what: str
    """The operation that makes it, or `argument`."""
    source: str
    """`file:line`."""
    count: int
    """Buffers like it."""


@dataclass(frozen=True)
class Reading:
    """Of one program. Bytes and FLOPs are of one device."""

    argument_bytes: int
    temp_bytes: int
    peak_bytes: int
    """When most is alive, by the compiler."""
    needed_bytes: int
    """What a device must have (`Compiled.needed_bytes`)."""
    host_bytes: int
    hbm_bytes: int
    fits: bool
    step_seconds: float
    """What the reading comes to: its parts, weighed as published runs ask (`data/time.yaml`)."""
    step_seconds_range: tuple[float, float]
    """By the largest error on published runs that the weights had not seen."""
    read_seconds: float
    """The reading itself, the sum of `terms`."""
    floor_seconds: float
    """The program's FLOPs at the chip's peak: no program that multiplies so much is faster."""
    mfu: float
    terms: dict[str, float]
    """Seconds by what they are spent on, as read."""
    flops: Flops
    collectives: tuple[SentOver, ...]
    buffers: tuple[Held, ...]
    replayed_bytes: int
    """The fullest moment as replayed from the schedule, of which `buffers` are."""
    findings: tuple[Finding, ...]

    def as_json(self) -> dict[str, Any]:
        found = asdict(self)
        for item, sent in zip(found["collectives"], self.collectives, strict=True):
            item["hidden_share"] = sent.hidden_share
        found["flops"]["program"] = self.flops.program
        return found


def read(compiled: Compiled, config: Config, target: Target) -> Reading:
    """What a compiled step of a recipe says about itself."""
    module = parse(compiled.text)
    priced = pricing(module, target, config.layout.sizes, precision_of(config))
    busy = branches(config)
    line = timeline(module, priced.cost, busy.some_stage)
    peak = replay(module)
    counted = count_flops(flops(module, busy.own_stage), config, target)
    sent = sent_over(priced, line, busy)
    weights = time_weights()[target.platform]
    work = line.terms[PRODUCTS] + line.terms[ATTENTION]
    step = weights["work"] * work + weights["rest"] * (line.seconds - work)
    memory = compiled.memory
    needed = compiled.needed_bytes(target.platform)
    hbm = target.hbm_bytes_per_device
    return Reading(
        argument_bytes=memory["argument"],
        temp_bytes=memory["temp"],
        peak_bytes=memory["peak_memory"],
        needed_bytes=needed,
        host_bytes=memory["host_argument"] + memory["host_temp"],
        hbm_bytes=hbm,
        fits=needed <= hbm,
        step_seconds=step,
        step_seconds_range=(step / (1 + weights["error"]), step * (1 + weights["error"])),
        read_seconds=line.seconds,
        floor_seconds=counted.program / priced.machine.peak_flops,
        mfu=counted.model / (step * priced.machine.peak_bf16_flops),
        terms=dict(sorted(line.terms.items(), key=lambda term: -term[1])),
        flops=counted,
        collectives=sent,
        buffers=held(module, peak),
        replayed_bytes=peak.bytes,
        findings=tuple(findings(module, config, target, compiled, line, priced, counted)),
    )


@cache
def time_weights() -> dict[str, dict[str, float]]:
    """By platform, from `data/time.yaml`."""
    return yaml.safe_load((files("qianyi.compile.data") / "time.yaml").read_text())


class Branches(NamedTuple):
    """How often, of all times that it could, the work of a pipeline's tick is done."""

    own_stage: Taken
    """By a device, on average."""
    some_stage: Taken
    """By any: all wait for it."""


def branches(config: Config) -> Branches:
    if config.layout.stage == 1:
        return Branches(always, always)
    ticks = schedule_of(config).ticks
    forward, backward, loss = ticks.f_on, ticks.b_on, ticks.b_on * ticks.b_last

    def shares(count: Callable[[Any], float]) -> Taken:
        of = {FORWARD: count(forward) / count(forward**0), BACKWARD: count(backward) / count(backward**0)}
        of[LOSS] = count(loss) / count(backward)
        return lambda op: next((share for scope, share in of.items() if op.op_name.endswith(f"{scope}/cond")), 1.0)

    return Branches(shares(lambda on: float(on.sum())), shares(lambda on: float(on.any(axis=1).sum())))


def sent_over(priced: Pricing, line: Timeline, busy: Branches) -> tuple[SentOver, ...]:
    """Collectives by kind and axes, most bytes first."""
    target = priced.target
    alike: dict[tuple[str, str], list[tuple[Sent, int]]] = {}
    for sent, times in count_sent(priced.module, busy.own_stage).items():
        alike.setdefault((sent.kind, crossed(sent, priced.sizes)), []).append((sent, times))
    found = [
        SentOver(
            kind=kind,
            axes=axes,
            link=link(target, all_sent[0][0]),
            count=sum(times for _, times in all_sent),
            bytes_per_device=sum(times * bytes_per_device(sent, members(target, sent)) for sent, times in all_sent),
            seconds=sum(times * priced.sent(sent).seconds for sent, times in all_sent),
            exposed_seconds=line.terms[priced.sent(all_sent[0][0]).term],
        )
        for (kind, axes), all_sent in alike.items()
    ]
    return tuple(sorted(found, key=lambda s: -s.bytes_per_device))


def members(target: Target, sent: Sent) -> int:
    """Of a group that names none."""
    return target.slices if sent.between_slices else target.n_devices


def link(target: Target, sent: Sent) -> str:
    """What the members of a group are joined by."""
    if sent.between_slices:
        return f"network between {SLICES}"
    if target.platform == "tpu":
        return "chip links"
    per_host = target.cluster.domain_chips
    groups = sent.groups or (tuple(range(target.n_devices)),)
    return "chip links" if all(len({i // per_host for i in group}) == 1 for group in groups) else "network between hosts"


def held(module: Module, peak: Peak) -> tuple[Held, ...]:
    """The largest buffers, those that are alike together."""
    groups: dict[tuple[str, str, str], list[Buffer]] = {}
    for buffer in peak.buffers:
        shape = f"{buffer.shape.dtype}[{','.join(map(str, buffer.shape.dims))}]"
        named = module.named(buffer.op)
        what = (
            f"argument {_plain(named.op_name)}".strip()
            if buffer.is_argument
            else (named.op_name.rpartition("/")[2] or buffer.op.opcode)
        )
        groups.setdefault((shape, what, "" if buffer.is_argument else module.source(named)), []).append(buffer)
    found = [Held(sum(b.bytes for b in like), *key, len(like)) for key, like in groups.items()]
    return tuple(sorted(found, key=lambda h: -h.bytes)[:N_BUFFERS])


def _plain(name: str) -> str:
    """`state.params['blocks']['up']`, as XLA escapes it, as `params/blocks/up`."""
    return name.replace("\\'", "'").replace("']['", "/").replace("['", "/").replace("']", "").removeprefix("state.")
