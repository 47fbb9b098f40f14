"""What each operation of a compiled program costs on its chip.

On a TPU the compiler itself writes into the program how many cycles it expects of an operation; kernels of our own and collectives have no
such number. On a GPU nothing does: an operation takes as long as its products at the chip's rate or its bytes at the memory's, whichever
is longer. Collectives take their links as the planner's do (`qianyi.plan.network`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from qianyi.compile.target import Target, tpus
from qianyi.plan.build import machine_numbers
from qianyi.plan.case import Machine
from qianyi.plan.constants import Constants, constants
from qianyi.plan.network import gather_seconds, hop_seconds, reduce_seconds
from qianyi.plan.stack import OURS, stack
from qianyi.program.collectives import Sent, bytes_per_device, crossed, sent_by
from qianyi.program.flops import is_attention, is_product, product_flops
from qianyi.program.hlo import HOST, Module, Op
from qianyi.program.timeline import CORE, Cost, Work, begun
from qianyi.program.traffic import moved_bytes

HOST_BYTES_PER_SECOND = 25e9
"""Of a chip to its host's memory: PCIe 4.0 x16 gives 31.5 GB/s, of which about four fifths are reached."""
_EMITTER = re.compile(r'"emitter":"(\d)D')
_PHASES = re.compile(r"phases:(\d)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
PRODUCTS, ATTENTION, OTHER, COPIES, TO_HOST = "products", "attention", "elementwise", "copies", "host memory"


@dataclass(frozen=True)
class Pricing:
    """How the operations of one program are priced."""

    module: Module
    target: Target
    sizes: Mapping[str, int]
    """Of the mesh's axes."""
    machine: Machine
    """Of one device."""
    k: Constants

    @property
    def cost(self) -> Cost:
        return self._tpu if self.target.platform == "tpu" else self._gpu

    def _tpu(self, op: Op, table: dict[str, Op]) -> Work | None:
        if sent := self._sent_by(op):
            return self.sent(sent, op)
        if op.opcode == "recv":
            return None
        if begun(op):
            return self._copied(op)
        if op.opcode == "custom-call" and is_attention(op):
            return Work(CORE, self._attention_seconds(op, table), ATTENTION)
        found = _CYCLES.search(op.attributes)
        if found is None:
            return None
        term = PRODUCTS if is_product(self.module, op) else OTHER
        return Work(CORE, int(found[1]) / (1e9 * tpus()[self.target.cluster.chip.name]["clock_ghz"]), term)

    def _gpu(self, op: Op, table: dict[str, Op]) -> Work | None:
        if sent := self._sent_by(op):
            return self.sent(sent)
        if begun(op):
            return self._copied(op)
        if op.opcode == "custom-call" and is_attention(op):
            return Work(CORE, self._attention_seconds(op, table), ATTENTION)
        moved = moved_bytes(self.module, op, table) / (self.machine.hbm_bytes_per_second * self.k.memory_efficiency)
        if is_product(self.module, op):
            return Work(CORE, max(self._product_seconds(op, table), moved), PRODUCTS)
        return Work(CORE, moved, OTHER) if moved else None

    def _sent_by(self, op: Op) -> Sent | None:
        """The collective that an operation is, or that it begins beside the core (in a fusion, on v7's sparse cores)."""
        sent = sent_by(op)
        if sent is None and begun(op):
            inside = [sent_by(inner) for name in op.called for inner in self.module.computations[name]]
            return next((sent for sent in inside if sent), None)
        return sent

    def sent(self, sent: Sent, op: Op | None = None) -> Work:
        """A collective on its links; with its operation, on as many dimensions of the torus as the compiler's algorithm takes."""
        axes = crossed(sent, self.sizes)
        dims = _dims(op) if op is not None else None
        seconds = self._torus_seconds(sent, dims) if dims else self._link_seconds(sent)
        return Work("between slices" if sent.between_slices else "links", seconds, f"{sent.kind} over {axes or 'one device'}")

    def _torus_seconds(self, sent: Sent, dims: int) -> float:
        rate = 2 * dims * self.machine.near_bytes_per_second * self.k.near_efficiency
        return bytes_per_device(sent, self.target.n_devices) / rate + self.k.near_latency_seconds

    def _link_seconds(self, sent: Sent) -> float:
        if sent.between_slices:
            rate = self.target.cluster.far_bytes_per_second * self.k.far_efficiency
            return bytes_per_device(sent, self.target.slices) / rate + self.k.far_latency_seconds
        group = sorted(sent.groups[0]) if sent.groups else list(range(self.target.n_devices))
        if len(group) < 2:
            return 0.0
        size, stride = float(len(group)), float(max(1, (group[-1] - group[0]) // (len(group) - 1)))
        match sent.kind:
            case "collective-permute":
                steps = [abs(a - b) for a, b in sent.groups if a != b]
                return float(hop_seconds(self.machine, self.k, 2.0, float(min(steps, default=1)), sent.result_bytes))
            case "all-reduce":
                return float(reduce_seconds(self.machine, self.k, size, stride, sent.result_bytes))
            case "reduce-scatter":
                return float(gather_seconds(self.machine, self.k, size, stride, size * sent.result_bytes))
            case _:
                return float(gather_seconds(self.machine, self.k, size, stride, sent.result_bytes))

    def _copied(self, op: Op) -> Work | None:
        """Copies beside the core: to memory on the chip, or to the host's."""
        shapes = op.shapes
        if len(shapes) < 2:
            return None
        # Of slices what is cut out or put in; of a copy the two are the same.
        arrays = [shape.stored_bytes for shape in shapes if shape.dims]
        moved = min(arrays, default=0)
        if any(shape.space == HOST for shape in shapes):
            return Work("host", moved / HOST_BYTES_PER_SECOND, TO_HOST)
        return Work("copy", moved / (self.machine.hbm_bytes_per_second * self.k.memory_efficiency), COPIES)

    def _attention_seconds(self, op: Op, table: dict[str, Op]) -> float:
        flops = product_flops(self.module, op, table)
        return flops / (self.machine.peak_bf16_flops * self.k.attention_efficiency) * self.k.attention_pace

    def _product_seconds(self, op: Op, table: dict[str, Op]) -> float:
        flops = product_flops(self.module, op, table)
        if op.opcode == "fusion":
            inside = self.module.tables[op.called[0]]
            flops = sum(product_flops(self.module, inner, inside) for inner in inside.values())
        eight = self.machine.peak_flops > self.machine.peak_bf16_flops and "f8e" in op.attributes + op.type
        peak = (
            self.machine.peak_flops * self.k.eight_bit_efficiency
            if eight
            else self.machine.peak_bf16_flops * self.k.matmul_efficiency
        )
        return flops / peak


def _dims(op: Op) -> int | None:
    """Along how many dimensions of a torus a collective goes at once, where the program says."""
    found = _EMITTER.search(op.attributes) or _PHASES.search(op.attributes)
    return int(found[1]) if found else None


def pricing(module: Module, target: Target, sizes: Mapping[str, int], precision: str) -> Pricing:
    """Of a program compiled for a target, with products in a precision of `Chip.peak_flops`."""
    share = target.cluster.n_chips / target.n_devices
    whole = machine_numbers(target.cluster, precision)
    machine = replace(
        whole,
        peak_flops=whole.peak_flops * share,
        peak_bf16_flops=whole.peak_bf16_flops * share,
        hbm_bytes_per_second=whole.hbm_bytes_per_second * share,
        near_bytes_per_second=whole.near_bytes_per_second * share,
        far_bytes_per_second=whole.far_bytes_per_second * share,
        domain=whole.domain / share,
    )
    return Pricing(module, target, sizes, machine, constants(stack(OURS), target.cluster.chip, precision))
