"""What a compiled step holds and sends, as text to be reviewed: a change in shardings or in communication shows in its diff."""

from collections.abc import Iterator
from typing import Any

import jax

from qianyi.compile.outcome import Outcome
from qianyi.compile.read import Reading
from qianyi.config.schema import Config
from qianyi.parallel.mesh import abstract_mesh
from qianyi.train.state import abstract_state


def shardings(config: Config) -> list[str]:
    """Every array of the state with its whole shape and the axes that its dims lie on; optimizer state that lies as the parameter does is
    not repeated."""
    state = abstract_state(config, abstract_mesh(config.layout))
    params = dict(_arrays(state.params))
    lines = [f"params/{name:44} {placed}" for name, placed in params.items()]
    for name, placed in _arrays(state.opt_state):
        alike = next((p for p in params if name.endswith(f"/{p}")), None)
        if alike is None or placed != params[alike]:
            lines.append(f"opt_state/{name:41} {placed}")
    return lines


def inventory(outcome: Outcome) -> str:
    """Shardings, communication and memory of a compiled step.

    Raises:
        ValueError: it does not fit: there is no program.
    """
    found = outcome.result
    if not isinstance(found, Reading):
        raise ValueError("there is no program")
    layout = f"{outcome.config.layout.words}, {outcome.config.train.accumulation} microbatches"
    head = f"{outcome.recipe} on {outcome.target.cluster.name}: {layout}"
    sent = [f"{c.kind:18} over {c.axes:22} {c.count:8,} x {c.bytes_per_device:18,} bytes, {c.link}" for c in found.collectives]
    sizes = [
        f"arguments {found.argument_bytes:18,} bytes",
        f"peak      {found.peak_bytes:18,} bytes",
        f"FLOPs     {found.flops.program:18.4e}, forward {found.flops.forward:.4e}, again {found.flops.recompute:.4e}, "
        f"backward {found.flops.backward:.4e}",
    ]
    parts = {"state": shardings(outcome.config), "sent per step by a device": sent, "a device": sizes}
    return head + "\n" + "".join(f"\n{title}\n" + "".join(f"  {line}\n" for line in lines) for title, lines in parts.items())


def _arrays(tree: Any) -> Iterator[tuple[str, str]]:
    for path, array in jax.tree_util.tree_leaves_with_path(tree):
        dims = [entry if isinstance(entry, tuple) else (entry,) for entry in array.sharding.spec]
        dims += [(None,)] * (array.ndim - len(dims))
        words = ", ".join("x".join(a for a in axes if a) or "-" for axes in dims)
        yield (
            jax.tree_util.keystr(path, simple=True, separator="/"),
            f"{array.dtype}[{','.join(map(str, array.shape))}] ({words})",
        )
