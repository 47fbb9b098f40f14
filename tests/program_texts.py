"""Small programs as text, for tests of `qianyi.program`."""

from qianyi.program.hlo import Module, Op, parse

ADD = """
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}
"""

SUM = "  %y = f32[8] all-reduce(%x), channel_id=1, replica_groups={{0,1}}, to_apply=%add"


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
