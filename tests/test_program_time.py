"""Readers of compiled programs, on small texts whose answers are known: what it moves and holds, and how long it takes."""

import pytest
from program_texts import ADD, BRANCHES, CHAIN, CHAINED, CHOICE, SUM, loop, program, round_it_goes

from qianyi.program.hlo import HOST
from qianyi.program.memory import replay
from qianyi.program.timeline import CORE, Work, timeline
from qianyi.program.traffic import moved_bytes

# What a program moves and holds.


def moved(fused: str, entry: str) -> int:
    others = f"%fused (p: f32[]) -> f32[] {{\n{fused.strip(chr(10))}\n}}\n"
    module = program(entry, others)
    table = module.tables["main"]
    return moved_bytes(module, next(op for op in table.values() if op.is_root), table)


def test_of_what_is_sliced_only_slices_move() -> None:
    fused = """
  %all = f32[16,1024] parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %one = f32[1,1024] dynamic-slice(%all, %i, %zero), dynamic_slice_sizes={1,1024}
  ROOT %y = f32[1,1024] negate(%one)
"""
    entry = """
  %all = f32[16,1024] parameter(0)
  %i = s32[] parameter(1)
  ROOT %f = f32[1,1024] fusion(%all, %i), kind=kLoop, calls=%fused
"""
    assert moved(fused, entry) == 4096 + 4 + 4096


def test_of_what_is_updated_only_the_slice_moves() -> None:
    fused = """
  %all = f32[16,1024] parameter(0)
  %new = f32[1024] parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  %row = f32[1,1024] bitcast(%new)
  ROOT %y = f32[16,1024] dynamic-update-slice(%all, %row, %i, %zero)
"""
    entry = """
  %all = f32[16,1024] parameter(0)
  %new = f32[1024] parameter(1)
  %i = s32[] parameter(2)
  ROOT %f = f32[16,1024] fusion(%all, %new, %i), kind=kLoop, calls=%fused
"""
    assert moved(fused, entry) == 4096 + 4096 + 4 + 4096  # the slice read, what replaces it, where, the slice written


def test_operands_and_results_move_unless_they_are_on_the_chip() -> None:
    entry = """
  %a = f32[1024] parameter(0)
  %b = f32[1024]{0:S(1)} parameter(1)
  ROOT %y = f32[1024] add(%a, %b)
"""
    assert moved("  ROOT %p = f32[] parameter(0)", entry) == 2 * 4096
    assert moved("  ROOT %p = f32[] parameter(0)", entry.replace("add(%a, %b)", "bitcast(%a)")) == 0


def test_buffers_live_from_their_making_to_their_last_use() -> None:
    peak = replay(
        program("""
  %p = f32[1024] parameter(0)
  %a = f32[1024] exponential(%p)
  %b = f32[1024] sine(%a)
  %c = f32[1024] add(%a, %b)
  %d = f32[512] slice(%c), slice={[0:512]}
  ROOT %e = f32[512] cosine(%d)
""")
    )
    # The argument, and a and b; c is written over one of them.
    assert (peak.bytes, peak.at) == (3 * 4096, "b")
    assert sorted(buffer.op.name for buffer in peak.buffers) == ["a", "b", "p"]
    assert [buffer.is_argument for buffer in peak.buffers].count(True) == 1


def test_memory_spaces_are_replayed_apart() -> None:
    module = program("""
  %p = f32[1024]{0:S(5)} parameter(0)
  %a = f32[512]{0:S(1)} exponential(%p)
  ROOT %b = f32[256] cosine(%a)
""")
    assert replay(module).bytes == 1024
    assert replay(module, HOST).bytes == 4096


IN_PLACE = """
  %zero = s32[] constant(0)
  %row = f32[4] exponential(%small)
  %y = f32[8] dynamic-update-slice(%x, %row, %i)
"""


def test_loops_and_updates_of_slices_make_no_new_buffers() -> None:
    inside = "  %small = f32[4] constant({...})\n" + IN_PLACE
    module = program(
        round_it_goes("body")
        .replace("tuple(%start, %p)", "tuple(%start, %own)")
        .replace("  %begin", "  %own = f32[8] copy(%p)\n  %begin"),
        loop("body", 9, "1", inside),
    )
    peak = replay(module)
    assert sorted((buffer.op.name, buffer.bytes) for buffer in peak.buffers) == [("own", 32), ("p", 32), ("row", 16)]


def test_fused_updates_and_given_arguments_are_written_in_place() -> None:
    fused = """
%fused (p: f32[]) -> f32[] {
  %all = f32[1024] parameter(0)
  %new = f32[8] parameter(1)
  %zero = s32[] constant(0)
  ROOT %y = f32[1024] dynamic-update-slice(%all, %new, %zero)
}
"""
    entry = """
  %p = f32[1024] parameter(0)
  %q = f32[8] parameter(1)
  %all = f32[1024] exponential(%p)
  %updated = f32[1024] fusion(%all, %q), kind=kLoop, calls=%fused
  ROOT %y = (f32[1024], f32[8]) tuple(%updated, %q)
"""
    assert replay(program(entry, fused)).bytes == 4096 + 32 + 4096
    alone = entry.replace("fusion(%all, %q), kind=kLoop, calls=%fused", "dynamic-update-slice(%all, %q, %q)")
    assert replay(program(alone)).bytes == 4096 + 32 + 4096
    # The result is written over what was given.
    given = ", input_output_alias={ {0}: (0, {}, may-alias), {1}: (1, {}, may-alias) }"
    assert program(entry, fused, head=given).aliases == {0: 0, 1: 1}
    assert replay(program(entry, fused, head=given)).bytes == 4096 + 32


def test_results_of_what_is_begun_are_made_when_it_begins() -> None:
    peak = replay(
        program("""
  %p = f32[256] parameter(0)
  %s = (f32[256], f32[1024]) all-gather-start(%p), replica_groups={{0,1,2,3}}, dimensions={0}
  %meanwhile = f32[256] exponential(%p)
  %d = f32[1024] all-gather-done(%s)
  ROOT %y = (f32[1024], f32[256]) tuple(%d, %meanwhile)
""")
    )
    assert peak.bytes == 1024 + 4096 + 1024


# How long a program takes.

GATHER = """
  %p = f32[8] parameter(0)
  %s = (f32[8], f32[16]) all-gather-start(%p), replica_groups={{0,1}}, dimensions={0}
  %compute = f32[8] exponential(%p)
  ROOT %d = f32[16] all-gather-done(%s)
"""
TWO = """
  %p = f32[8] parameter(0)
  %s = (f32[8], f32[16]) all-gather-start(%p), replica_groups={{0,1}}, dimensions={0}
  %s2 = (f32[8], f32[16]) all-gather-start(%p), replica_groups={{0,1}}, dimensions={0}
  %compute = f32[8] exponential(%p)
  %d = f32[16] all-gather-done(%s)
  ROOT %d2 = f32[16] all-gather-done(%s2)
"""
SYNC = """
  %p = f32[8] parameter(0)
  %s = (f32[8], f32[16]) all-gather-start(%p), replica_groups={{0,1}}, dimensions={0}
  %sum = f32[8] all-reduce(%p), replica_groups={{0,1}}, to_apply=%add
  %d = f32[16] all-gather-done(%s)
  ROOT %compute = f32[8] exponential(%sum)
"""


@pytest.mark.parametrize(
    ("entry", "seconds", "links", "whole", "waited"),
    [
        (GATHER, {"s": 1.0}, "ab", 2.0, 0.0),
        (GATHER, {"s": 4.0}, "ab", 4.0, 2.0),
        (GATHER.replace("  %compute = f32[8] exponential(%p)\n", ""), {"s": 4.0}, "ab", 4.0, 4.0),
        (TWO, {"s": 3.0, "s2": 3.0}, "aa", 6.0, 4.0),
        (TWO, {"s": 3.0, "s2": 3.0}, "ab", 3.0, 1.0),
        (SYNC, {"sum": 3.0}, "aa", 5.0, 3.0),
        (SYNC, {"s": 2.0, "sum": 3.0}, "aa", 7.0, 5.0),
        (SYNC, {"s": 4.0, "sum": 3.0}, "ab", 6.0, 4.0),
    ],
    ids=["hidden", "half hidden", "exposed", "one link", "two links", "synchronous", "synchronous queues", "synchronous hides"],
)
def test_transfers_take_the_time_that_nothing_hides(
    entry: str, seconds: dict[str, float], links: str, whole: float, waited: float
) -> None:
    works = {"compute": Work(CORE, 2.0, "computing")}
    works |= {name: Work(links[name != "s"], n, "sending") for name, n in seconds.items()}
    line = timeline(program(entry, ADD), lambda op, _: works.get(op.name))
    assert (line.seconds, line.terms["sending"]) == (whole, waited)
    assert line.busy["sending"] == sum(seconds.values())
    assert sum(line.terms.values()) == line.seconds


def test_time_of_loops_and_branches() -> None:
    works = {"y": Work("link", 1.0, "sending"), "i": Work(CORE, 0.5, "computing")}
    never = timeline(program(round_it_goes("body", 9), ADD + loop("body", 9, "1", SUM)), lambda op, _: works.get(op.name))
    assert never.seconds == 0
    line = timeline(program(round_it_goes("body"), ADD + loop("body", 9, "1", SUM)), lambda op, _: works.get(op.name))
    assert (line.seconds, line.terms["sending"], line.busy["sending"], line.terms["computing"]) == (13.5, 9.0, 9.0, 4.5)
    # Of branches the longest.
    line = timeline(
        program(CHOICE, BRANCHES), lambda op, _: Work(CORE, op.shapes[0].bytes, op.opcode) if op.name == "y" else None
    )
    assert line.terms == {"all-reduce": 32.0}


def test_a_gather_in_pieces_is_hidden_by_the_fusions_beside_it() -> None:
    works = {"async-collective-start.3": Work("links", 3.0, "sending"), "meanwhile": Work(CORE, 2.0, "computing")}
    line = timeline(program(CHAINED, CHAIN), lambda op, _: works.get(op.name))
    assert (line.seconds, line.terms["sending"], line.busy["sending"]) == (3.0, 1.0, 3.0)
