"""State and activations in the host's memory: what may lie there, and moving it inside the step.

Arrays there are part of the program like others (JAX's memory kind `pinned_host`); the compiler schedules the copies beside other work.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from qianyi.config.schema import Config
from qianyi.errors import ResourceError

HOST = "pinned_host"
Update = Callable[[Any, Any], tuple[Any, Any]]
"""(parameters, the optimizer's state) -> the same after a step."""


def require_host_memory(config: Config, devices: Sequence[Any]) -> None:
    """Refuse what these devices cannot do, before anything is allocated.

    Raises:
        ResourceError: the recipe moves something to host memory that programs of these devices cannot address.
    """
    keys = [f"model.remat.{name}=offload" for name in config.model.offloaded_activations]
    keys += [f"train.offload={config.train.offload}"] if config.train.offload != "none" else []
    if keys and HOST not in {memory.kind for memory in devices[0].addressable_memories()}:
        raise ResourceError(f"{', '.join(keys)}: {devices[0].device_kind} has no {HOST} memory; leave it out")


def placed(abstract: Any) -> Any:
    """Shapes, types and shardings of arrays that lie in host memory; scalars stay on the device."""

    def place(a: Any) -> Any:
        sharding = a.sharding.with_memory_kind(HOST) if a.ndim else a.sharding
        return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)

    return jax.tree.map(place, abstract)


def fetch(tree: Any) -> Any:
    """All arrays on the device; inside a program."""
    return jax.tree.map(lambda a: jax.device_put(a, jax.memory.Space.Device) if _on_host(a) else a, tree)


def put_back(tree: Any, before: Any) -> Any:
    """Arrays on the device, each moved to where its predecessor lies; inside a program."""
    return jax.tree.map(lambda a, old: jax.device_put(a, jax.memory.Space.Host) if _on_host(old) else a, tree, before)


def leaf_by_leaf(update: Update, params: Any, opt_state: Any) -> tuple[Any, Any]:
    """`update`; where the optimizer's state lies in host memory, one parameter after the other, so that little of it is on the device.

    Each turn takes from the update of everything what belongs to one parameter; the compiler leaves the rest of it out. A turn's arrays may
    be fetched when those of the turn before are done.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    owners = [_owner(path, paths) for path, _ in jax.tree_util.tree_leaves_with_path(opt_state)]
    if not any(_on_host(a) for a in jax.tree.leaves(opt_state)):
        return update(params, opt_state)
    update, done = jax.jit(update), jnp.zeros(())  # traced once
    new_params: list[Any] = [None] * len(paths)
    new_state: list[Any] = [None] * len(owners)
    for turn in range(len(paths)):
        after = jax.tree.map(lambda a, done=done: _after(done, a) if _on_host(a) else a, opt_state)
        some_params, some_state = (jax.tree.leaves(part) for part in update(params, after))
        mine = {i: a for i, (a, owner) in enumerate(zip(some_state, owners, strict=True)) if owner == turn}
        done, new_params[turn], mine = lax.optimization_barrier((done, some_params[turn], mine))
        for i, a in mine.items():
            new_state[i] = a
    like = jax.tree.structure
    return jax.tree.unflatten(like(params), new_params), jax.tree.unflatten(like(opt_state), new_state)


def _owner(path: Any, params: list[Any]) -> int:
    """The number of the parameter that an entry of the optimizer's state is about; 0 if it is about none or all."""
    return next((i for i, own in enumerate(params) if any(path[at : at + len(own)] == own for at in range(len(path)))), 0)


def _after(done: Array, a: Array) -> Array:
    """`a`, not before `done` is there."""
    return lax.optimization_barrier((a, done))[0]


def _on_host(a: Array) -> bool:
    return jax.typeof(a).memory_space == jax.memory.Space.Host
