"""Readers of compiled programs, on small texts whose answers are known: how often it runs, what it sends and multiplies."""

from collections import Counter

import pytest
from program_texts import ADD, BRANCHES, CHAIN, CHAINED, CHOICE, SUM, loop, op_of, program, round_it_goes

from qianyi.program.collectives import axes_of, bytes_per_device, collectives, parse_groups, sent_by, sent_bytes
from qianyi.program.flops import flops, product_flops
from qianyi.program.hlo import Op, parse_shapes
from qianyi.program.runs import executions
from qianyi.program.timeline import CORE, Work, timeline


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
