"""Parameter names of Hugging Face `transformers`, as data: one table per family, used in both directions.

An entry says which of our parameters make one Hugging Face tensor and how its dims relate, in the notation
`D H K -> (H K) D`: ours on the left, theirs on the right, letters in parentheses flattened together. Where several of ours
are one of theirs, they are concatenated along `concat_dim` of the right side.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qianyi.config.schema import ModelConfig
from qianyi.errors import CheckpointError
from qianyi.model.param import Param, Tree
from qianyi.model.transformer import model_params

Tensor = NDArray[np.float32]


@dataclass(frozen=True)
class Entry:
    """One Hugging Face tensor, or one per layer where its name has `{layer}`."""

    theirs: str
    ours: tuple[str, ...]
    """Paths in our parameter tree."""
    dims: str
    concat_dim: int = 0


GPT2 = (
    Entry("transformer.wte.weight", ("embedding/tokens",), "V D -> V D"),
    Entry("transformer.wpe.weight", ("embedding/positions",), "T D -> T D"),
    Entry("transformer.h.{layer}.ln_1.weight", ("blocks/attn_norm/scale",), "D -> D"),
    Entry("transformer.h.{layer}.ln_1.bias", ("blocks/attn_norm/bias",), "D -> D"),
    Entry(
        "transformer.h.{layer}.attn.c_attn.weight",
        ("blocks/attn/query", "blocks/attn/key", "blocks/attn/value"),
        "D H K -> D (H K)",
        concat_dim=1,
    ),
    Entry(
        "transformer.h.{layer}.attn.c_attn.bias",
        ("blocks/attn/query_bias", "blocks/attn/key_bias", "blocks/attn/value_bias"),
        "H K -> (H K)",
    ),
    Entry("transformer.h.{layer}.attn.c_proj.weight", ("blocks/attn/out",), "H K D -> (H K) D"),
    Entry("transformer.h.{layer}.attn.c_proj.bias", ("blocks/attn/out_bias",), "D -> D"),
    Entry("transformer.h.{layer}.ln_2.weight", ("blocks/mlp_norm/scale",), "D -> D"),
    Entry("transformer.h.{layer}.ln_2.bias", ("blocks/mlp_norm/bias",), "D -> D"),
    Entry("transformer.h.{layer}.mlp.c_fc.weight", ("blocks/mlp/up",), "D F -> D F"),
    Entry("transformer.h.{layer}.mlp.c_fc.bias", ("blocks/mlp/up_bias",), "F -> F"),
    Entry("transformer.h.{layer}.mlp.c_proj.weight", ("blocks/mlp/down",), "F D -> F D"),
    Entry("transformer.h.{layer}.mlp.c_proj.bias", ("blocks/mlp/down_bias",), "D -> D"),
    Entry("transformer.ln_f.weight", ("final_norm/scale",), "D -> D"),
    Entry("transformer.ln_f.bias", ("final_norm/bias",), "D -> D"),
)
"""`GPT2LMHeadModel`; its linear layers are stored input first, and the output projection is the embedding."""

LLAMA = (
    Entry("model.embed_tokens.weight", ("embedding/tokens",), "V D -> V D"),
    Entry("model.layers.{layer}.input_layernorm.weight", ("blocks/attn_norm/scale",), "D -> D"),
    Entry("model.layers.{layer}.self_attn.q_proj.weight", ("blocks/attn/query",), "D H K -> (H K) D"),
    Entry("model.layers.{layer}.self_attn.k_proj.weight", ("blocks/attn/key",), "D G K -> (G K) D"),
    Entry("model.layers.{layer}.self_attn.v_proj.weight", ("blocks/attn/value",), "D G K -> (G K) D"),
    Entry("model.layers.{layer}.self_attn.o_proj.weight", ("blocks/attn/out",), "H K D -> D (H K)"),
    Entry("model.layers.{layer}.post_attention_layernorm.weight", ("blocks/mlp_norm/scale",), "D -> D"),
    Entry("model.layers.{layer}.mlp.gate_proj.weight", ("blocks/mlp/gate",), "D F -> F D"),
    Entry("model.layers.{layer}.mlp.up_proj.weight", ("blocks/mlp/up",), "D F -> F D"),
    Entry("model.layers.{layer}.mlp.down_proj.weight", ("blocks/mlp/down",), "F D -> D F"),
    Entry("model.norm.weight", ("final_norm/scale",), "D -> D"),
    Entry("lm_head.weight", ("head/tokens",), "V D -> V D"),
)
"""`LlamaForCausalLM`; its linear layers are stored output first."""


def family(m: ModelConfig) -> tuple[Entry, ...]:
    """The table for a model.

    Raises:
        CheckpointError: `transformers` has no model of these parts.
    """
    parts = (m.norm, m.mlp, m.position, m.bias)
    if parts == ("layernorm", "gelu", "learned", True) and m.tied_embeddings:
        return GPT2
    if parts == ("rmsnorm", "swiglu", "rope", False):
        return tuple(e for e in LLAMA if not (m.tied_embeddings and e.theirs == "lm_head.weight"))
    raise CheckpointError(
        f"no Hugging Face model has norm={m.norm}, mlp={m.mlp}, position={m.position}, bias={m.bias}, "
        f"tied_embeddings={m.tied_embeddings}; known are GPT-2 and Llama"
    )


def to_hf(params: Tree, m: ModelConfig) -> dict[str, Tensor]:
    """Our parameters, whole and on the host, as a Hugging Face state dict."""
    state: dict[str, Tensor] = {}
    for entry in family(m):
        for layer, theirs in _instances(entry, m):
            parts = [_forward(_pick(_at(params, path), layer), entry.dims) for path in entry.ours]
            state[theirs] = np.concatenate(parts, axis=entry.concat_dim) if len(parts) > 1 else parts[0]
    return state


def from_hf(state: Mapping[str, Tensor], m: ModelConfig) -> Tree:
    """A Hugging Face state dict as our parameters.

    Raises:
        CheckpointError: a tensor is missing or has another shape than the recipe's model.
    """
    declared = model_params(m)
    found: dict[str, list[Tensor]] = {}
    for entry in family(m):
        for _, theirs in _instances(entry, m):
            shapes = [_layer_shape(_at(declared, path)) for path in entry.ours]
            for path, part, shape in zip(entry.ours, _split(state, theirs, entry, shapes), shapes, strict=True):
                found.setdefault(path, []).append(_backward(part, entry.dims, shape))
    return _build(declared, found, "")


def _instances(entry: Entry, m: ModelConfig) -> list[tuple[int | None, str]]:
    if "{layer}" not in entry.theirs:
        return [(None, entry.theirs)]
    return [(layer, entry.theirs.format(layer=layer)) for layer in range(m.n_layers)]


def _split(state: Mapping[str, Tensor], theirs: str, entry: Entry, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    wanted = [_their_shape(entry.dims, shape) for shape in shapes]
    whole = list(wanted[0])
    whole[entry.concat_dim] = sum(shape[entry.concat_dim] for shape in wanted)
    if theirs not in state:
        raise CheckpointError(f"`{theirs}` is missing in the Hugging Face weights")
    tensor = state[theirs]
    if list(tensor.shape) != whole:
        raise CheckpointError(f"`{theirs}` has shape {tuple(tensor.shape)}, the recipe's model needs {tuple(whole)}")
    stops = np.cumsum([shape[entry.concat_dim] for shape in wanted])[:-1]
    return np.split(tensor, [int(stop) for stop in stops], axis=entry.concat_dim)


def _parse(dims: str) -> tuple[list[str], list[list[str]]]:
    """`D H K -> (H K) D` as ([D, H, K], [[H, K], [D]])."""
    left, right = dims.split(" -> ")
    groups: list[list[str]] = []
    for chunk in right.replace("(", " ( ").replace(")", " ) ").split():
        if chunk == "(":
            groups.append([])
        elif chunk != ")":
            groups[-1].append(chunk) if _open(right, chunk) else groups.append([chunk])
    return left.split(), groups


def _open(right: str, letter: str) -> bool:
    before = right[: right.index(letter)]
    return before.count("(") > before.count(")")


def _forward(ours: Tensor, dims: str) -> Tensor:
    left, groups = _parse(dims)
    order = [left.index(letter) for group in groups for letter in group]
    return np.ascontiguousarray(ours.transpose(order).reshape(_their_shape(dims, ours.shape)))


def _backward(theirs: Tensor, dims: str, shape: tuple[int, ...]) -> Tensor:
    left, groups = _parse(dims)
    letters = [letter for group in groups for letter in group]
    apart = theirs.reshape([shape[left.index(letter)] for letter in letters])
    return np.ascontiguousarray(apart.transpose([letters.index(letter) for letter in left]))


def _their_shape(dims: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    left, groups = _parse(dims)
    return tuple(math.prod(shape[left.index(letter)] for letter in group) for group in groups)


def _layer_shape(p: Param) -> tuple[int, ...]:
    return p.shape[1:] if p.dims[0] == "layers" else p.shape


def _at(tree: Any, path: str) -> Any:
    for part in path.split("/"):
        tree = tree[part]
    return tree


def _pick(array: Tensor, layer: int | None) -> Tensor:
    return np.asarray(array if layer is None else array[layer])


def _build(declared: Tree, found: dict[str, list[Tensor]], prefix: str) -> Tree:
    tree: Tree = {}
    for name, node in declared.items():
        path = f"{prefix}{name}"
        if isinstance(node, Param):
            tree[name] = np.stack(found[path]) if node.dims[0] == "layers" else found[path][0]
        else:
            tree[name] = _build(node, found, f"{path}/")
    return tree
