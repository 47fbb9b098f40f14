"""What a layer keeps for its backward pass, moves to host memory, or computes again: a table of named activations."""

from collections.abc import Callable
from typing import Any

import jax

from qianyi.config.check import ACTIVATIONS, MATMUL_ACTIVATIONS
from qianyi.config.schema import ModelConfig

PRESETS = {"full": (), "matmuls": MATMUL_ACTIVATIONS, "none": ACTIVATIONS}
"""What each keeps."""


def remat_policy(m: ModelConfig) -> Callable[..., Any] | None:
    """The policy of `jax.checkpoint`. Never kept is what a collective put together from shards: whole weights and whole sequences are
    gathered again in the backward pass (ZeRO-3: Rajbhandari et al. 2020; sequences: Korthikanti et al. 2022, section 4.2.2)."""
    kept = [*PRESETS[m.remat]] if isinstance(m.remat, str) else [name for name, what in m.remat.items() if what == "keep"]
    if not m.offloaded_activations:
        return jax.checkpoint_policies.save_only_these_names(*kept) if kept else None
    return jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=kept,
        names_which_can_be_offloaded=[*m.offloaded_activations],
        offload_src="device",
        offload_dst="pinned_host",
    )
