"""Readers of compiled programs: on small texts whose answers are known, and on real programs whose answers the model knows."""

from collections import Counter
from pathlib import Path
from typing import Any

import jax
import pytest
from compilers import compile_apart
from models import LLAMA, make_config

from qianyi.compile.compilers import Compiled
from qianyi.compile.read import branches
from qianyi.config.schema import Config, LayoutConfig
from qianyi.parallel.mesh import make_mesh
from qianyi.plan.build import model_numbers
from qianyi.program.collectives import axes_of, bytes_per_device, collectives, parse_groups, sent_by, sent_bytes
from qianyi.program.flops import flops, product_flops
from qianyi.program.hlo import HOST, Module, Op, parse, parse_shapes
from qianyi.program.memory import replay
from qianyi.program.runs import executions
from qianyi.program.timeline import CORE, Work, timeline
from qianyi.program.traffic import moved_bytes
from qianyi.train.batch import abstract_batch
from qianyi.train.footprint import sends
from qianyi.train.state import abstract_state
from qianyi.train.step import make_train_step

ADD = """
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}
"""


def program(entry: str, others: str = "", head: str = "") -> Module:
    """Of an entry computation's operations, and of whole other computations."""
    return parse(
        f"HloModule test, is_scheduled=true{head}\n{others}\nENTRY %main (p: f32[]) -> f32[] {{\n{entry.strip(chr(10))}\n}}\n"
    )


def op_of(text: str) -> Op:
    """One operation."""
    module = program(f"  ROOT {text}")
    return module.computations[module.entry][0]


def loop(name: str, limit: int, step: str, inside: str) -> str:
    """A body and a condition; `step`: of the counter."""
    return f"""
%{name} (carried: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %carried = (s32[], f32[8]) parameter(0)
  %i = s32[] get-tuple-element(%carried), index=0
  %x = f32[8] get-tuple-element(%carried), index=1
  %step = s32[] constant({step})
  %next = s32[] add(%i, %step)
{inside.strip(chr(10))}
  ROOT %carry = (s32[], f32[8]) tuple(%next, %y)
}}

%{name}.condition (carried: (s32[], f32[8])) -> pred[] {{
  %carried = (s32[], f32[8]) parameter(0)
  %i = s32[] get-tuple-element(%carried), index=0
  %limit = s32[] constant({limit})
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}}
"""


def round_it_goes(name: str, start: int = 0, attributes: str = "") -> str:
    """The operations that call a loop on %p."""
    return f"""
  %p = f32[8] parameter(0)
  %start = s32[] constant({start})
  %begin = (s32[], f32[8]) tuple(%start, %p)
  ROOT %loop = (s32[], f32[8]) while(%begin), condition=%{name}.condition, body=%{name}{attributes}
"""


SUM = "  %y = f32[8] all-reduce(%x), channel_id=1, replica_groups={{0,1}}, to_apply=%add"


@pytest.mark.parametrize(
    ("start", "limit", "step", "attributes", "expected"),
    [
        (0, 9, "1", "", 9),
        (1, 9, "2", "", 4),
        (0, 9, "2", "", 5),
        (3, 3, "1", "", 0),
        (0, 9, "1", ', backend_config={"known_trip_count":{"n":"7"},"known_init_step":{"init":"0","step":"1"}}', 7),
    ],
    ids=["counter", "from 1 by 2", "by 2", "never", "said"],
)
def test_trip_counts(start: int, limit: int, step: str, attributes: str, expected: int) -> None:
    module = program(round_it_goes("body", start, attributes), ADD + loop("body", limit, step, SUM))
    call = module.tables["main"]["loop"]
    assert (call.body, call.condition) == ("body", "body.condition")
    assert module.trip_count(call, "main") == expected
    assert executions(module, sent_bytes)["body"] == expected


def test_counter_behind_a_copy() -> None:
    entry = (
        round_it_goes("body", 2)
        .replace("tuple(%start", "tuple(%kept")
        .replace("  %begin", "  %kept = s32[] copy(%start)\n  %begin")
    )
    module = program(entry, ADD + loop("body", 9, "1", SUM))
    assert module.trip_count(module.tables["main"]["loop"], "main") == 7


def test_nested_loops_multiply() -> None:
    inner = """
  %zero = s32[] constant(0)
  %begin = (s32[], f32[8]) tuple(%zero, %x)
  %again = (s32[], f32[8]) while(%begin), condition=%inner.condition, body=%inner
  %y = f32[8] get-tuple-element(%again), index=1
"""
    module = program(round_it_goes("outer"), ADD + loop("inner", 3, "1", SUM) + loop("outer", 5, "1", inner))
    times = executions(module, sent_bytes)
    assert (times["outer"], times["inner"], times["main"]) == (5, 15, 1)


def test_loops_of_unknown_length_matter_only_if_they_weigh() -> None:
    unknown = ADD + loop("body", 9, "1", SUM).replace("%limit = s32[] constant(9)", "%limit = s32[] copy(%i)")
    module = program(round_it_goes("body"), unknown)
    assert executions(module, lambda _: 0.0)["body"] == 1
    with pytest.raises(ValueError, match="unknown length: loop"):
        executions(module, sent_bytes)


def branch(name: str, result: str) -> str:
    return f"%{name} (x: f32[8]) -> f32[8] {{\n  %x = f32[8] parameter(0)\n  ROOT %y = f32[8] {result}\n}}\n"


BRANCHES = (
    ADD
    + branch("light", "all-reduce(%x), replica_groups={{0,1}}, to_apply=%add").replace("f32[8]", "f32[4]")
    + branch("heavy", "all-reduce(%x), replica_groups={{0,1}}, to_apply=%add")
    + branch("idle", "negate(%x)")
)
CHOICE = """
  %which = s32[] parameter(0)
  %p = f32[8] parameter(1)
  ROOT %chosen = f32[8] conditional(%which, %p, %p, %p), branch_computations={%light, %heavy, %idle}
"""


def test_a_conditional_takes_the_heaviest_branch() -> None:
    times = executions(program(CHOICE, BRANCHES), sent_bytes)
    assert (times["light"], times["heavy"], times["idle"]) == (0, 1, 0)


def test_a_branch_that_is_sometimes_taken_runs_so_often() -> None:
    """One within another: as often as both are."""
    choice = "  %y = f32[8] conditional(%i, %x, %x, %x), branch_computations={%outer, %idle, %idle}"
    inner = "  %x = f32[8] parameter(0)\n  %zero = s32[] constant(0)\n" + choice.replace("%i,", "%zero,").replace(
        "outer", "heavy"
    )
    outer = "%outer (x: f32[8]) -> f32[8] {\n" + inner.replace("  %y", "  ROOT %y") + "\n}\n"
    module = program(round_it_goes("body"), BRANCHES + outer + loop("body", 6, "1", choice))

    def share(op: Op) -> float:
        return 0.25 if op.name == "y" else 1.0

    times = executions(module, sent_bytes, taken=share)
    assert (times["body"], times["outer"], times["heavy"], times["idle"]) == (6, 1.5, 0.375, 0)
    line = timeline(module, lambda op, _: Work(CORE, 2.0, op.opcode) if op.opcode == "all-reduce" else None, taken=share)
    assert line.terms == {"all-reduce": 0.75}


@pytest.mark.parametrize(
    ("text", "numbers", "stored", "space"),
    [
        ("f32[3,5]{1,0}", 60, 60, 0),
        ("bf16[3,5,7]{2,1,0:T(8,128)(2,1)}", 210, 3 * 8 * 128 * 2, 0),
        ("bf16[130,5]{0,1:T(8,128)(2,1)S(1)}", 1300, 8 * 256 * 2, 1),
        ("f32[300]{0:T(256)S(5)}", 1200, 2048, 5),
        ("f32[5]{0:T(8,128)}", 20, 8 * 128 * 4, 0),
        ("s4[3]{0}", 2, 2, 0),
        ("f8e4m3fn[4,128]{1,0:T(8,128)(4,1)}", 512, 1024, 0),
        ("pred[9]", 9, 9, 0),
        ("s32[<=8]{0}", 32, 32, 0),
        ("s32[]{:T(128)}", 4, 4 * 128, 0),
    ],
)
def test_shapes(text: str, numbers: int, stored: int, space: int) -> None:
    (shape,) = parse_shapes(text)
    assert (shape.bytes, shape.stored_bytes, shape.space) == (numbers, stored, space)


def test_tuples_have_shapes_and_elements() -> None:
    op = op_of(
        '%x = ((f32[4]{0}, bf16[2,3]{1,0}), /*index=1*/s8[5]{0:T(8)(4,1)}) custom-call(), custom_call_target="of (brackets)"'
    )
    assert [shape.dtype for shape in op.shapes] == ["f32", "bf16", "s8"]
    assert [len(parse_shapes(element)) for element in op.elements] == [2, 1]


HEAD = """
FileNames
1 "/somewhere/qianyi/model/block.py"
2 "/somewhere/jax/_src/api.py"
3 "/somewhere/qianyi/train/step.py"

FunctionNames
1 "block"

FileLocations
1 {file_name_id=3 function_name_id=1 line=100 end_line=100 column=1 end_column=2}
2 {file_name_id=1 function_name_id=1 line=93 end_line=95 column=1 end_column=2}
3 {file_name_id=2 function_name_id=1 line=7 end_line=7 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}
4 {file_location_id=3 parent_frame_id=1}
"""


def test_sources_are_the_innermost_line_of_our_own() -> None:
    entry = "\n".join(f'  %p{n} = f32[] parameter({n}), metadata={{op_name="x{n}" stack_frame_id={n}}}' for n in (1, 2, 3, 4))
    module = program(entry + "\n  ROOT %p0 = f32[] parameter(0)", head="\n" + HEAD)
    ops = module.tables["main"]
    assert [module.source(ops[f"p{n}"]) for n in (1, 2, 3, 4, 0)] == [
        "qianyi/train/step.py:100",
        "qianyi/model/block.py:93",
        "qianyi/model/block.py:93",
        "api.py:7",
        "",
    ]
    assert ops["p2"].op_name == "x2"


# What a program sends.


@pytest.mark.parametrize(
    ("text", "kind", "result", "sent"),
    [
        ("f32[8] all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%add", "all-reduce", 32, 48),
        ("(f32[4], f32[4]) all-reduce-start(%p, %q), replica_groups={{0,1}}, to_apply=%add", "all-reduce", 32, 32),
        ("(f32[2]{0}, f32[8]{0}) all-gather-start(%p), replica_groups=[1,4]<=[4], dimensions={0}", "all-gather", 32, 24),
        (
            "((f32[4]{0}, f32[2]{0}), (f32[8]{0}, f32[4]{0})) all-gather-start(%p, %q), replica_groups={{0,1}}, dimensions={0}",
            "all-gather",
            48,
            24,
        ),
        ("((f32[8]), f32[2]) reduce-scatter-start(%p), replica_groups=[2,4]<=[8], dimensions={0}", "reduce-scatter", 8, 24),
        ("f32[8] all-to-all(%p), replica_groups={{0,1,2,3}}, dimensions={0}", "all-to-all", 32, 24),
        (
            "(f32[8], f32[8], u32[], u32[]) collective-permute-start(%p), source_target_pairs={{0,1},{1,0}}",
            "collective-permute",
            32,
            32,
        ),
    ],
)
def test_bytes_of_collectives(text: str, kind: str, result: int, sent: int) -> None:
    found = sent_by(op_of(f"%x = {text}"))
    assert found is not None
    assert (found.kind, found.result_bytes, bytes_per_device(found, 8)) == (kind, result, sent)


def test_what_is_not_understood_is_not_passed_over() -> None:
    assert sent_by(op_of("%x = f32[8] all-reduce-done(%p)")) is None
    with pytest.raises(ValueError, match="ragged-all-to-all is not understood: x"):
        sent_by(op_of("%x = f32[8] ragged-all-to-all(%p), replica_groups={{0,1}}"))
    with pytest.raises(ValueError, match="send is not understood: x"):
        sent_by(op_of("%x = (f32[8], u32[], token[]) send(%p, %after), channel_id=3"))


@pytest.mark.parametrize(("kind", "sent"), [("ALL_REDUCE", 32), ("ALL_GATHER", 32), ("REDUCE_SCATTER", 16)])
def test_sends_between_slices(kind: str, sent: int) -> None:
    """Of two slices: a sum is sent and received in halves, a share goes to the other slice whole."""
    attributes = f'channel_id=7, is_host_transfer=true, frontend_attributes={{_xla_megascale_transfer_type="{kind}"}}'
    entry = f"""
  %p = f32[8] parameter(0)
  %after = token[] after-all()
  %send = (f32[8]{{0}}, u32[], token[]) send(%p, %after), {attributes}
  %sent = token[] send-done(%send), {attributes}
  %recv = (f32[8]{{0}}, u32[], token[]) recv(%after), {attributes}
  %got = (f32[8]{{0}}, token[]) recv-done(%recv), {attributes}
  ROOT %y = f32[8] get-tuple-element(%got), index=0
"""
    text = f"HloModule test\n\nENTRY %main (p: f32[8]) -> f32[8] {{\n{entry.strip(chr(10))}\n}}\n"
    (found,) = collectives(text, {"replica": 2, "data": 4}, n_slices=2)
    assert (found.kind, found.axes, found.count, found.bytes_per_device) == (kind.lower().replace("_", "-"), "slices", 1, sent)


@pytest.mark.parametrize(
    ("attributes", "groups", "axes"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", ((0, 1), (2, 3), (4, 5), (6, 7)), "model"),
        ("replica_groups=[2,4]<=[8]", ((0, 1, 2, 3), (4, 5, 6, 7)), "data x model"),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", ((0, 4), (1, 5), (2, 6), (3, 7)), "stage"),
        ("replica_groups=[4,2]<=[2,2,2]T(0,2,1)", ((0, 2), (1, 3), (4, 6), (5, 7)), "data"),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", ((0, 2, 4, 6), (1, 3, 5, 7)), "stage x data"),
        ("source_target_pairs={{0,4},{4,0}}", ((0, 4), (4, 0)), "stage"),
        ("replica_groups={}", (), "stage x data x model"),
    ],
)
def test_groups_and_their_axes(attributes: str, groups: tuple[tuple[int, ...], ...], axes: str) -> None:
    assert parse_groups(attributes) == groups
    assert axes_of(groups, {"stage": 2, "data": 2, "model": 2}) == axes


CHAIN = """
%begins (a: f32[2]) -> (f32[2], f32[8], u32[]) {
  %a = f32[2] parameter(0)
  %g = f32[8] all-gather(%a), replica_groups={{0,1,2,3}}, dimensions={0}, frontend_attributes={chain_id="4"}
  ROOT %c = (f32[2], f32[8], u32[]) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%goes_on (a: f32[2], b: f32[8]) -> (f32[8], f32[8]) {
  %a = f32[2] parameter(0)
  %b = f32[8] parameter(1)
  %g = f32[8] all-gather(%a), replica_groups={{0,1,2,3}}, dimensions={0}, frontend_attributes={chain_id="4"}
  %work = f32[8] exponential(%b)
  ROOT %c = (f32[8], f32[8]) tuple(%work, %g)
}

%ends (a: f32[2], b: f32[8]) -> f32[8] {
  %a = f32[2] parameter(0)
  %b = f32[8] parameter(1)
  %g = f32[8] all-gather(%a), replica_groups={{0,1,2,3}}, dimensions={0}, frontend_attributes={chain_id="4"}
  ROOT %c = f32[8] custom-call(%a, %b, %g), custom_call_target="AsyncCollectiveDone"
}
"""
CHAINED = """
  %p = f32[2] parameter(0)
  %q = f32[8] parameter(1)
  %async-collective-start.3 = (f32[2], f32[8], u32[]) fusion(%p), kind=kCustom, calls=%begins
  %t = f32[2] get-tuple-element(%async-collective-start.3), index=0
  %meanwhile = (f32[8], f32[8]) fusion(%t, %q), kind=kOutput, calls=%goes_on
  %u = f32[8] get-tuple-element(%meanwhile), index=1
  ROOT %async-collective-done.3 = f32[8] fusion(%t, %u), kind=kCustom, calls=%ends
"""


def test_a_gather_in_pieces_is_one() -> None:
    """TPUs gather while fusions compute: the same gather stands in the fusion that begins it, in those beside it and in the last one."""
    text = f"HloModule test\n{CHAIN}\nENTRY %main (p: f32[2]) -> f32[8] {{\n{CHAINED.strip(chr(10))}\n}}\n"
    (found,) = collectives(text, {"data": 4})
    assert (found.kind, found.count, found.bytes_per_device) == ("all-gather", 1, 24)


# What a program multiplies.


@pytest.mark.parametrize(
    ("types", "product", "expected"),
    [
        (
            ("f32[4,16,32]", "f32[4,32,8]"),
            "f32[4,16,8] dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}",
            2 * 4 * 16 * 32 * 8,
        ),
        (("bf16[512,256]", "bf16[256,64]"), "bf16[512,64] convolution(%a, %b), dim_labels=bf_io->bf", 2 * 512 * 256 * 64),
        (  # two heads as a dim that only padding lets the window cover
            ("bf16[2,256,128,1]", "bf16[2,64,128,1]"),
            "bf16[2,256,2,64] convolution(%a, %b), window={size=1x2 pad=0_0x1_1 rhs_reversal=0x1}, dim_labels=0bf1_1oi0->0b1f",
            2 * 2 * 256 * 128 * 2 * 64,
        ),
        (  # three taps on eight places, two of which meet padding
            ("f32[1,8,4]", "f32[3,4,16]"),
            "f32[1,8,16] convolution(%a, %b), window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f",
            2 * (3 * 8 - 2) * 4 * 16,
        ),
        (  # strided and dilated: of each output one tap meets an element
            ("f32[1,4,4]", "f32[2,4,16]"),
            "f32[1,4,16] convolution(%a, %b), window={size=2 stride=2 pad=0_0 lhs_dilate=2}, dim_labels=b0f_0io->b0f",
            2 * 4 * 4 * 16,
        ),
        (
            ("bf16[512,256]", "bf16[256,64]"),
            '(bf16[512,64], s8[1024]) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":'
            '{"alpha_real":1,"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}',
            2 * 512 * 256 * 64,
        ),
        (  # half of all pairs
            ("bf16[2,128,4,64]", "bf16[2,128,4,64]"),
            '(bf16[2,128,4,64], u8[0]) custom-call(%a, %b), custom_call_target="__cudnn$fmhaSoftmax", backend_config='
            '{"cudnn_fmha_backend_config":{"mask_type":"CAUSAL","intermediate_tensor_shape":{"element_type":"BF16","dimensions":["2","4","128","128"]}}}',
            2 * 2 * 2 * 4 * 128 * 128 * 64 // 2,
        ),
        (("f32[16]", "f32[16]"), "f32[16] multiply(%a, %b)", 0),
    ],
    ids=["dot", "matrices", "heads", "padding", "dilation", "cublas", "attention", "elementwise"],
)
def test_flops_of_products(types: tuple[str, str], product: str, expected: int) -> None:
    entry = f"  %a = {types[0]} parameter(0)\n  %b = {types[1]} parameter(1)\n  ROOT %x = {product}"
    module = program(entry)
    assert product_flops(module, module.tables["main"]["x"]) == expected


def test_products_are_told_apart_by_pass_and_by_kind() -> None:
    names = {
        "forward": "jit(step)/jvp()/dot_general",
        "backward": "jit(step)/transpose(jvp())/dot_general",
        "recompute": "jit(step)/transpose(jvp())/checkpoint/rematted_computation/dot_general",
        "of the loss": "jit(step)/jvp()/while/body/gradient/dot_general",
    }
    dots = "\n".join(
        f'  %y{n} = f32[8] dot(%m, %x), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}, metadata={{op_name="{name}"}}'
        for n, name in enumerate(names.values())
    )
    inside = f"  %m = s8[8,8] constant({{...}})\n{dots}\n  %y = f32[8] dot(%m, %m), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}"
    found = flops(program(round_it_goes("body"), loop("body", 3, "1", inside)))
    total = Counter[tuple[str, bool]]()
    for product, times in found.items():
        total[product.part, product.eight_bit] += int(product.flops) * times
    once = 3 * 2 * 8 * 8
    assert total == {
        ("forward", False): once,
        ("backward", False): 2 * once,
        ("recompute", False): once,
        ("forward", True): once,
    }


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


# Real programs.

SEQ, ROWS = 256, 16
MODEL = LLAMA.model_copy(
    update={"n_layers": 4, "d_model": 256, "n_heads": 2, "n_kv_heads": 1, "d_ff": 512, "max_seq_len": SEQ, "vocab_size": 1024}
)
LAYOUT = LayoutConfig(data=4)
ATTENTION = {"cpu": (1 + 128 / SEQ, 2.5 * (1 + 128 / SEQ)), "h100:1x4": (1.0, 2.5), "tpu-v5p:2x2x1": (1.0, 3.5)}
"""What attention multiplies, forward and in gradients, in forward passes that leave out all masked pairs: blocks of 128 queries on a CPU
meet some; scores are made again for gradients, by the kernels of TPUs twice."""


def small(on: str, remat: str = "none", layout: LayoutConfig = LAYOUT, **train: Any) -> Config:
    model = MODEL.model_copy(update={"dtype": "float32" if on == "cpu" else "bfloat16", "remat": remat})
    return make_config(model, layout, seq_len=SEQ, batch_size=ROWS, loss_chunk_tokens=SEQ, **train)


def on_cpus(config: Config) -> Compiled:
    """The step on virtual devices, which need not run it."""
    mesh = make_mesh(config.layout, jax.devices()[: config.layout.n_devices])
    with jax.set_mesh(mesh):
        step: Any = make_train_step(config)
        compiled = step.lower(abstract_state(config, mesh), abstract_batch(config, mesh)).compile()
    memory = compiled.memory_analysis()  # which tells no peak
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return Compiled(compiled.as_text(), {"peak_memory": peak}, 0, 0, {}, 0, (), [], "cpu", {}, [])


def by_pass(module: Module) -> dict[str, float]:
    total = dict.fromkeys(("forward", "recompute", "backward"), 0.0)
    for product, times in flops(module).items():
        total[product.part] += product.flops * times
    return total


def needed(config: Config) -> tuple[float, float]:
    """FLOPs of a forward pass on one device by the formula, and of these attention's."""
    m, tokens = config.model, ROWS * SEQ / config.layout.n_devices
    attention = 4 * m.n_layers * m.n_heads * m.d_head * SEQ / 2
    return tokens * float(model_numbers(m, SEQ).flops_per_token) / 3, tokens * attention


@pytest.mark.parametrize("on", ATTENTION)
def test_programs_multiply_send_and_hold_what_they_should(on: str, tmp_path: Path) -> None:
    config = small(on)
    compiled = on_cpus(config) if on == "cpu" else compile_apart(config, on, tmp_path)
    module = parse(compiled.text)
    found, (forward, attention) = by_pass(module), needed(config)
    once, again = ATTENTION[on]
    assert found["forward"] == pytest.approx(forward + (once - 1) * attention, rel=0.01)
    assert found["backward"] == pytest.approx(2 * forward + (again - 2) * attention, rel=0.01)
    assert found["recompute"] == 0
    sent = {c.kind: c.bytes_per_device for c in collectives(compiled.text, config.layout.sizes)}
    said = {s.what: s.bytes_per_device for s in sends(config)}
    assert sent["all-gather"] == said["weights gathered"]
    if not on.startswith("tpu"):  # whose compiler sums small gradients whole
        assert sent["reduce-scatter"] == said["gradients reduced and scattered"]
        assert sent["all-reduce"] == pytest.approx(said["gradients summed over copies"], rel=0.01)  # beside these a few scalars
    assert replay(module).bytes == pytest.approx(compiled.memory["peak_memory"], rel=0.15)


def test_recomputed_layers_show() -> None:
    """All of the layers but the last products of each, which no gradient needs, and not the head, whose gradient is made at once."""
    config = small("cpu", remat="full")
    found, (forward, attention) = by_pass(parse(on_cpus(config).text)), needed(config)
    m, (once, _) = config.model, ATTENTION["cpu"]
    left_out = 2 * m.d_model * (m.vocab_size + m.n_layers * m.d_hidden) * ROWS * SEQ / config.layout.n_devices
    assert found["recompute"] == pytest.approx(forward + (once - 1) * attention - left_out, rel=0.01)
    assert found["forward"] == pytest.approx(forward + (once - 1) * attention, rel=0.01)
    assert found["backward"] == pytest.approx(2 * found["forward"], rel=0.01)  # whose scores are those made again


def test_stages_that_run_again_show() -> None:
    """Of a pipeline: its layers run forward once more, the head does not."""
    config = small("cpu", layout=LayoutConfig(stage=2, data=2), accumulation=4)
    found = dict.fromkeys(("forward", "recompute", "backward"), 0.0)
    for product, times in flops(parse(on_cpus(config).text), branches(config).own_stage).items():
        found[product.part] += product.flops * times
    (forward, attention), (once, again) = needed(config), ATTENTION["cpu"]
    head = 2 * config.model.d_model * config.model.vocab_size * ROWS * SEQ / config.layout.n_devices
    layers = forward - head + (once - 1) * attention
    # The last stage's only forward pass is the one before its backward pass.
    assert found["forward"] == pytest.approx(layers / 2 + head, rel=0.01)
    assert found["recompute"] == pytest.approx(layers, rel=0.02)  # less the last products, whose results nobody needs
    assert found["backward"] == pytest.approx(2 * forward + (again - 2) * attention, rel=0.01)
