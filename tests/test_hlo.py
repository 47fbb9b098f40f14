"""Texts of compiled programs as compilers print them, in the parts that only some of them print."""

from qianyi.program.collectives import parse_groups
from qianyi.program.hlo import parse
from qianyi.program.memory import replay

LOOP = """HloModule m, is_scheduled=true

%body (p: (f32[8], u32[], s32[])) -> (f32[8], u32[], s32[]) {
  %p = (f32[8]{0}, u32[], s32[]) parameter(0)
  %x = f32[8]{0} get-tuple-element(%p), index=0
  %n = u32[] get-tuple-element(%p), index=1
  %i = s32[] get-tuple-element(%p), index=2
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  ROOT %t = (f32[8]{0}, u32[], s32[]) tuple(%x, %n, %next)
}

%condition (q: (f32[8], u32[], s32[])) -> pred[] {
  %q = (f32[8]{0}, u32[], s32[]) parameter(0)
  %at = s32[] get-tuple-element(%q), index=2
  %end = s32[] constant(8)
  ROOT %less = pred[] compare(%at, %end), direction=LT
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %zero = u32[] constant(0)
  %start = s32[] constant(0)
  %carried = (f32[8]{0}, u32[], s32[]) tuple(%a, %zero, %start)
  %loop = (f32[8]{0}, u32[], s32[]) while(%carried), condition=%condition, body=%body
  ROOT %out = f32[8]{0} get-tuple-element(%loop), index=0
}
"""
TUPLE = """HloModule m, is_scheduled=true

ENTRY %main (a: f32[1024]) -> f32[1024] {
  %a = f32[1024]{0} parameter(0)
  %two = (f32[1024]{0}, f32[1024]{0}) custom-call(%a), custom_call_target="two"
  %first = f32[1024]{0} get-tuple-element(%two), index=0
  %used = f32[1024]{0} custom-call(%first), custom_call_target="use"
  %more = f32[1024]{0} custom-call(%used), custom_call_target="use"
  %last = f32[1024]{0} custom-call(%more), custom_call_target="use"
  %second = f32[1024]{0} get-tuple-element(%two), index=1
  ROOT %end = f32[1024]{0} add(%last, %second)
}
"""


def test_a_loop_is_counted_by_what_its_condition_looks_at() -> None:
    """MaxText's windowed products carry their counter behind other arrays, and count by two."""
    module = parse(LOOP)
    assert module.trip_count(module.tables["main"]["loop"], "main") == 4


def test_taking_one_array_out_of_a_tuple_keeps_no_other() -> None:
    peak = replay(parse(TUPLE))
    # The argument, the second array, and an input and an output; the first array is gone.
    assert peak.bytes == 4 * 4096


def test_groups_of_a_mesh() -> None:
    mesh = "replica_groups=mesh['data'=2,'one'=1,'model'=3]"
    assert parse_groups(f"{mesh} {{'model'}}, dimensions={{0}}") == ((0, 1, 2), (3, 4, 5))
    assert parse_groups(f"{mesh} {{'data'}}, dimensions={{0}}") == ((0, 3), (1, 4), (2, 5))
    assert parse_groups(f"{mesh} {{'model','data'}}") == ((0, 3, 1, 4, 2, 5),)
    # Two rows of three devices that are numbered by columns.
    turned = "replica_groups=mesh['axis_0'=2,'axis_1'=3], device_ids=([3,2]T(1,0)) {'axis_1'}"
    assert parse_groups(turned) == ((0, 2, 4), (1, 3, 5))
