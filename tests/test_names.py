"""The notation of name tables says what NumPy says, both ways, for each arrangement that families of models use."""

import numpy as np
import pytest
from models import LLAMA

from qianyi.errors import CheckpointError
from qianyi.export.families import FAMILIES, family_of
from qianyi.export.names import Constant, Entry, Fixed, Table, Tensor, export_params, import_params, interleaved, plus, skip_rows
from qianyi.model.param import Param, Tree, stack

L, E, D, H, G, K, F, T = 2, 3, 8, 4, 2, 6, 10, 5


def parameter(*shape: int) -> Param:
    return Param(shape, ("residual",) * len(shape))


BLOCK: Tree = {
    "query": parameter(D, H, K), "key": parameter(D, G, K), "value": parameter(D, H, K), "wide": parameter(D, H, K + 2),
    "gate": parameter(E, D, F), "up": parameter(E, D, F), "scale": parameter(D),
}  # fmt: skip
DECLARED: Tree = {"table": parameter(T, D), "blocks": stack(BLOCK, L), "dense_blocks": stack({"up": parameter(D, F)}, 2)}
RANDOM = np.random.default_rng(0)


def draw(declared: Tree) -> Tree:
    return {
        name: RANDOM.standard_normal(p.shape).astype(np.float32) if isinstance(p, Param) else draw(p)
        for name, p in declared.items()
    }


def only(*paths: str) -> Tree:
    """The declarations under these paths."""
    tree: Tree = {}
    for path in paths:
        *parents, name = path.split("/")
        source, target = DECLARED, tree
        for parent in parents:
            source, target = source[parent], target.setdefault(parent, {})
        target[name] = source[name]
    return tree


def rotary_pairs(w: Tensor) -> Tensor:
    """The rows of a head as llama.cpp's converter orders them, [(H K), D]."""
    return w.reshape(-1, 2, K // 2, D).swapaxes(1, 2).reshape(w.shape)


def rows(w: Tensor) -> Tensor:
    """[D, H, K] -> [(H K), D]."""
    return w.reshape(D, -1).T


Q, KEY, V, WIDE = ("blocks/query", "blocks/key", "blocks/value", "blocks/wide")
ARRANGEMENTS = {
    "one after the other, of unequal sizes": (
        Entry("{layer}.qkv", (Q, KEY, V), "D H K -> D (* H K)"),
        lambda b: np.concatenate([b["query"].reshape(D, -1), b["key"].reshape(D, -1), b["value"].reshape(D, -1)], axis=1),
    ),
    "interleaved per head (BLOOM)": (
        Entry("{layer}.qkv", (Q, V), "D H K -> (H * K) D"),
        lambda b: np.stack([b["query"].transpose(1, 2, 0), b["value"].transpose(1, 2, 0)], axis=1).reshape(-1, D),
    ),
    "per head, of unequal widths (DeepSeek's kv_b)": (
        Entry("{layer}.kv_b", (Q, WIDE), "D H K -> (H * K) D"),
        lambda b: np.concatenate([b["query"].transpose(1, 2, 0), b["wide"].transpose(1, 2, 0)], axis=1).reshape(-1, D),
    ),
    "rotary pairs of one of two": (
        Entry("{layer}.qk", (Q, V), "D H K -> (* H K) D", (interleaved(), plus(0.0))),
        lambda b: np.concatenate([rotary_pairs(rows(b["query"])), rows(b["value"])]),
    ),
    "rotary pairs in the last columns": (
        Entry("{layer}.q", (Q,), "D H K -> (H K) D", (interleaved(4),)),
        lambda b: b["query"][..., [0, 1, 2, 4, 3, 5]].reshape(D, -1).T,
    ),
    "norm scale less one (Gemma)": (Entry("{layer}.norm", ("blocks/scale",), "D -> D", (plus(1.0),)), lambda b: b["scale"] - 1),
    "stacked experts, gate and up fused": (
        Entry("{layer}.gate_up", ("blocks/gate", "blocks/up"), "E D F -> E (* F) D"),
        lambda b: np.concatenate([b["gate"].swapaxes(1, 2), b["up"].swapaxes(1, 2)], axis=1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_arrangements(name: str) -> None:
    entry, expected = ARRANGEMENTS[name]
    declared = only(*entry.ours)
    params = draw(declared)
    state = dict(export_params(params, declared, (entry,)))
    assert list(state) == [entry.theirs.format(layer=layer) for layer in range(L)]
    for layer, theirs in enumerate(state.values()):
        np.testing.assert_array_equal(theirs, expected({key: a[layer] for key, a in params["blocks"].items()}))
    back = import_params(state, declared, (entry,))
    for key, array in params["blocks"].items():
        np.testing.assert_allclose(back["blocks"][key], array, atol=1e-7 if "norm" in name else 0)


def test_rows_to_skip() -> None:
    """OPT's positions begin at row 2."""
    declared, table = only("table"), (Entry("positions", ("table",), "T D -> T D", (skip_rows(2),)),)
    theirs = RANDOM.standard_normal((T + 2, D)).astype(np.float32)
    ours = import_params({"positions": theirs}, declared, table)
    np.testing.assert_array_equal(ours["table"], theirs[2:])
    np.testing.assert_array_equal(dict(export_params(ours, declared, table))["positions"][2:], theirs[2:])
    with pytest.raises(CheckpointError, match=r"\(5, 8\), the model needs \(7, 8\)"):
        import_params({"positions": theirs[2:]}, declared, table)


def test_an_expert_is_a_tensor_and_layers_of_one_stack_follow_those_of_another() -> None:
    declared = only("dense_blocks/up", "blocks/up")
    table: Table = (
        Entry("layers.{layer}.up", ("dense_blocks/up",), "D F -> F D"),
        Entry("layers.{layer}.experts.{expert}.up", ("blocks/up",), "D F -> F D", first_layer=2),
    )
    params = draw(declared)
    state = dict(export_params(params, declared, table))
    assert len(state) == 2 + L * E
    np.testing.assert_array_equal(state["layers.1.up"], params["dense_blocks"]["up"][1].T)
    np.testing.assert_array_equal(state["layers.3.experts.2.up"], params["blocks"]["up"][1, 2].T)
    back = import_params(state, declared, table)
    np.testing.assert_array_equal(back["blocks"]["up"], params["blocks"]["up"])


def test_what_only_one_side_has() -> None:
    declared = only("table", "blocks/scale")
    table: Table = (
        Entry("table", ("table",), "T D -> T D"),
        Fixed("blocks/scale", 1.0),
        Constant("position_ids", np.arange(T, dtype=np.float32)),
    )
    params = import_params({"table": np.ones((T, D), np.float32), "copy.table": np.zeros(1)}, declared, table, ("copy.*",))
    assert (params["blocks"]["scale"] == 1).all()
    assert list(dict(export_params(params, declared, table))) == ["table", "position_ids"]
    params["blocks"]["scale"][1, 3] = 2
    with pytest.raises(CheckpointError, match="`position_ids` has values that the model here does not compute with"):
        import_params({"table": np.ones((T, D), np.float32), "position_ids": np.zeros(T, np.float32)}, declared, table)
    with pytest.raises(CheckpointError, match=r"blocks/scale is not 1\.0 everywhere"):
        dict(export_params(params, declared, table))


def test_nothing_is_forgotten() -> None:
    declared, table = only("table", "blocks/scale"), (Entry("table", ("table",), "T D -> T D"),)
    with pytest.raises(CheckpointError, match="no row for blocks/scale"):
        import_params({"table": np.ones((T, D), np.float32)}, declared, table)
    with pytest.raises(CheckpointError, match="no place for: bias, rope_freqs"):
        import_params({"table": np.ones((T, D), np.float32), "rope_freqs": np.ones(1), "bias": np.ones(1)}, only("table"), table)


EXAMPLES = {
    "llama": {
        "model_type": "llama", "vocab_size": 300, "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "head_dim": 12,
        "num_key_value_heads": 1, "intermediate_size": 40, "max_position_embeddings": 30, "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "tie_word_embeddings": True,
    },
}  # fmt: skip


def test_a_model_of_no_family_is_told_what_each_would_need() -> None:
    with pytest.raises(CheckpointError, match=r"parts: Llama needs bias=False; .*"):
        family_of(LLAMA.model_copy(update={"bias": True}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "rope_type=yarn"),
        ({"rope_parameters": None, "rope_theta": 1e4, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type=dynamic"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "factor is missing"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"hidden_act": "gelu"}, "hidden_act=gelu"),
    ],
)
def test_what_is_not_computed_here_is_refused(change: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        FAMILIES[1].model_config(EXAMPLES["llama"] | change)


def test_configurations_before_transformers_5() -> None:
    old = {key: value for key, value in EXAMPLES["llama"].items() if key != "rope_parameters"} | {
        "rope_theta": 5e5,
        "rope_scaling": None,
    }
    assert FAMILIES[1].model_config(old) == FAMILIES[1].model_config(EXAMPLES["llama"])
