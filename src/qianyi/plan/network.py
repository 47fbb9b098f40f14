"""Time of collectives on the links that they use.

A mesh axis is `size` ranks, neighbours of which are `stride` chips apart: the axes inside it fill the domain first. On a switch a group
that is larger than a domain is a ring in each host joined to rings between hosts, as NCCL builds them; both run at once, so the slower
counts. On a torus an axis takes the links of the dimensions that it fills. Bytes are those of the whole array that a rank ends up with
(all-gather) or begins with (reduce-scatter); an all-reduce is both, one after the other.
"""

import numpy as np

from qianyi.plan.case import Machine, Number
from qianyi.plan.constants import Constants


def gather_seconds(
    machine: Machine, k: Constants, size: Number, stride: Number, whole_bytes: Number, messages: Number = 1
) -> Number:
    """All-gather, or reduce-scatter, over an axis, of an array that travels in so many messages."""
    near, hosts = _near_and_far(machine, size, stride)
    inside = whole_bytes * (near - 1) / np.maximum(near, 1) / (_near_rate(machine, size, stride) * k.near_efficiency)
    across = whole_bytes * (hosts - 1) / hosts / (near * machine.far_bytes_per_second * k.far_efficiency)
    steps = (near - 1) * k.near_latency_seconds + (hosts - 1) * k.far_latency_seconds
    latency = np.where(whole_bytes > 0, messages * np.minimum(steps, _MOST_STEPS * k.far_latency_seconds), 0.0)
    return np.maximum(inside, across) + latency


def reduce_seconds(
    machine: Machine, k: Constants, size: Number, stride: Number, whole_bytes: Number, messages: Number = 1
) -> Number:
    """All-reduce over an axis."""
    return 2 * gather_seconds(machine, k, size, stride, whole_bytes, messages)


def exchange_seconds(machine: Machine, k: Constants, size: Number, stride: Number, token_bytes: Number, copies: Number) -> Number:
    """All-to-all over an axis: each of a rank's tokens (`token_bytes` in all) goes to `copies` ranks drawn evenly, once to each place."""
    near, hosts = _near_and_far(machine, size, stride)
    rate = _near_rate(machine, size, stride) * k.near_efficiency
    to_ranks, to_hosts = token_bytes * _distinct(size, copies), token_bytes * _distinct(hosts, copies)
    # On a ring of n with both directions a message goes n / 4 links on average.
    longest = np.max([p for p, _ in _parts(machine, size, stride)], axis=0)
    on_torus = to_ranks * longest / 8 / (machine.near_bytes_per_second * k.near_efficiency)
    on_switch = to_ranks * (near - 1) / np.maximum(near, 1) / rate
    inside = np.where(machine.switched > 0, on_switch, np.where(near > 1, on_torus, 0.0))
    across = to_hosts * (hosts - 1) / hosts / (machine.far_bytes_per_second * k.far_efficiency)
    return np.maximum(inside, across) + np.where(size > 1, k.far_latency_seconds * np.sqrt(size), 0.0)


def _distinct(places: Number, draws: Number) -> Number:
    """Different places among so many draws, on average."""
    return places * (1 - (1 - 1 / np.maximum(places, 1)) ** draws)


def hop_seconds(machine: Machine, k: Constants, size: Number, stride: Number, sent_bytes: Number) -> Number:
    """Every rank sends to the next one of its axis."""
    far = size * stride > machine.domain
    near_rate = np.where(machine.switched > 0, machine.near_bytes_per_second, 2 * machine.near_bytes_per_second)
    rate = np.where(far & (machine.switched > 0), machine.far_bytes_per_second * k.far_efficiency, near_rate * k.near_efficiency)
    return np.where(size > 1, sent_bytes / rate + k.far_latency_seconds, 0.0)


_MOST_STEPS = 64
"""Steps of a ring whose latency is paid; beyond, libraries use trees."""


def _near_and_far(machine: Machine, size: Number, stride: Number) -> tuple[Number, Number]:
    """Ranks of an axis in one domain, and domains that it spans."""
    near = np.clip(np.floor(machine.domain / np.maximum(stride, 1)), 1, size)
    return near, size / near


def _near_rate(machine: Machine, size: Number, stride: Number) -> Number:
    """Bytes per second into a chip from its domain."""
    on_torus = sum(
        np.where(part > 1, links * machine.near_bytes_per_second, 0.0) for part, links in _parts(machine, size, stride)
    )
    return np.where(machine.switched > 0, machine.near_bytes_per_second, np.maximum(on_torus, machine.near_bytes_per_second))


def _parts(machine: Machine, size: Number, stride: Number) -> list[tuple[Number, Number]]:
    """How much of each dimension of a torus an axis fills, and with how many links: both of a ring, one of a line."""
    inside, left, parts = stride, size, []
    dims = ((machine.torus_a, machine.wrap_a), (machine.torus_b, machine.wrap_b), (machine.torus_c, machine.wrap_c))
    for dim, wrap in dims:
        taken = np.minimum(dim, np.maximum(inside, 1))  # by axes inside this one
        part = np.minimum(np.maximum(dim / taken, 1), np.maximum(left, 1))
        parts.append((part, np.where((part >= dim) & (wrap > 0), 2.0, 1.0)))
        inside, left = inside / taken, left / part
    return parts
