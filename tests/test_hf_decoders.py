"""Each family of decoders computes what Hugging Face `transformers` computes, through files in both directions, and with a cache what it
computes without; GLM-130B, which is not in `transformers`, is compared with its block written in PyTorch."""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import DECODERS, variant
from jax.sharding import PartitionSpec as P
from models import host_batch, make_config, place

from qianyi.config.model import RopeScalingConfig
from qianyi.config.schema import ModelConfig
from qianyi.export.families import family_in, family_of
from qianyi.export.hf import from_hf, to_hf, write_hf
from qianyi.generate.sample import generate_tokens, make_extend
from qianyi.model.param import Tree, map_params
from qianyi.model.transformer import empty_cache, model_logits, model_params
from qianyi.parallel.mesh import make_mesh
from qianyi.train.step import make_loss_and_gradients

torch = pytest.importorskip("torch", reason="parity with PyTorch needs the extra `parity`")
transformers = pytest.importorskip("transformers", reason="parity with Hugging Face needs the extra `parity`")
load_file = pytest.importorskip("safetensors.numpy").load_file

GLM = DECODERS["glm"]
LLAMA3 = RopeScalingConfig(kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=2.0, original_max_seq_len=12)
MODELS = {
    **{name: m for name, m in DECODERS.items() if name != "glm"},
    "llama": variant(DECODERS["llama"], rope_theta=100.0, rope_scaling=LLAMA3),
    "gemma3": variant(DECODERS["gemma3"], rope_scaling=RopeScalingConfig(kind="linear", factor=8.0)),
}
TOKENS = host_batch()["inputs"][:4]
ATOL = 1e-4


class Peer(NamedTuple):
    """A model of `transformers` with random weights, and what it wrote."""

    m: ModelConfig
    theirs: Any
    config: dict[str, Any]
    """config.json."""
    state: dict[str, np.ndarray]
    """model.safetensors."""

    @property
    def params(self) -> Tree:
        return from_hf(self.state, self.m)

    def logits(self) -> np.ndarray:
        return logits_of(self.theirs)


@pytest.fixture(scope="module", params=MODELS)
def peer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Peer:
    m, directory = MODELS[request.param], tmp_path_factory.mktemp("theirs")
    hf = family_of(m).hf_config(m) | {"pad_token_id": None}  # of such a token the embedding would have no gradient
    torch.manual_seed(0)
    theirs = getattr(transformers, hf["architectures"][0])(transformers.AutoConfig.for_model(**hf)).float().eval()
    with torch.no_grad():
        # Large enough to matter: biases, norm scales and the bias on the choice of experts too.
        for name, tensor in [*theirs.named_parameters(), *theirs.named_buffers()]:
            if tensor.is_floating_point() and "inv_freq" not in name and "embed_scale" not in name:
                tensor.add_(0.1 * torch.randn_like(tensor))
    theirs.save_pretrained(directory)
    state = load_file(directory / "model.safetensors")
    return Peer(m, theirs, json.loads((directory / "config.json").read_text()), state)


def logits_of(theirs: Any) -> np.ndarray:
    with torch.no_grad():
        return theirs(torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()


@cache
def logits_function(m: ModelConfig) -> Any:
    config = make_config(m)
    with jax.set_mesh(make_mesh(config.layout, jax.devices()[:1])):
        return jax.jit(jax.shard_map(lambda p, b: model_logits(p, b, config, lambda _, w: w), in_specs=P(), out_specs=P()))


def our_logits(params: Tree, m: ModelConfig, **rows: np.ndarray) -> np.ndarray:
    with jax.set_mesh(make_mesh(make_config(m).layout, jax.devices()[:1])):
        return np.asarray(logits_function(m)(params, {"inputs": TOKENS, **rows}))


def random_params(m: ModelConfig) -> Tree:
    random = np.random.default_rng(0)
    return map_params(lambda p: (p.mean + 0.1 * random.standard_normal(p.shape)).astype(np.float32), model_params(m))


def test_config_there_and_back(peer: Peer) -> None:
    """What `transformers` understood and wrote, and what our own keys say, is the model."""
    family = family_of(peer.m)
    for config in (peer.config, family.hf_config(peer.m)):
        assert family_in(config) is family
        again = family.model_config(config)
        assert family.hf_config(again) == family.hf_config(peer.m) and family_of(again) is family


def test_logits_of_their_weights(peer: Peer) -> None:
    expected = peer.logits()
    assert expected.std() > 0.1
    np.testing.assert_allclose(our_logits(peer.params, peer.m), expected, atol=ATOL)


def test_our_weights_in_their_model(peer: Peer, tmp_path: Path) -> None:
    params = random_params(peer.m)
    write_hf(tmp_path / "ours", params, peer.m, None, {})
    theirs, found = type(peer.theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    np.testing.assert_allclose(our_logits(params, peer.m), logits_of(theirs), atol=ATOL)


def test_round_trip(peer: Peer) -> None:
    """Exact, but for scales that are stored less one."""
    params = peer.params
    back = to_hf(params, peer.m)
    jax.tree.map(np.testing.assert_array_equal, from_hf(back, peer.m), params)
    assert set(back) == set(peer.state) - {"lm_head.weight"} | (set() if peer.m.tied_embeddings else {"lm_head.weight"})
    for name, array in back.items():
        theirs = peer.state[name]
        if "embed_positions" in name:  # nobody reads OPT's first two rows
            theirs = np.concatenate([np.zeros_like(theirs[:2]), theirs[2:]])
        np.testing.assert_allclose(array, theirs, rtol=0, atol=1e-7 if peer.m.norm_at == "sandwich" else 0)


@pytest.mark.parametrize("peer", ["bloom", "palm", "qwen3", "gemma2", "deepseek"], indirect=True)
def test_gradients_are_those_of_autograd(peer: Peer) -> None:
    """PyTorch differentiates the same loss of the same weights; every gradient leaf agrees."""
    from transformers.core_model_loading import revert_weight_conversion

    batch = {name: array[:4] for name, array in host_batch().items()}
    logits = peer.theirs(torch.tensor(batch["inputs"], dtype=torch.long)).logits
    targets = torch.tensor(batch["targets"], dtype=torch.long)
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1).backward()
    # So large that the constants that `plus` adds are nothing.
    huge = 2.0**40
    named = {name: tensor.grad * huge for name, tensor in peer.theirs.named_parameters()}
    named |= {name: tensor for name, tensor in peer.theirs.named_buffers() if "e_score" in name}
    named = {name: tensor.numpy() for name, tensor in revert_weight_conversion(peer.theirs, named).items()}
    expected = jax.tree.map(lambda g: g / huge, from_hf(named, peer.m))

    config = make_config(peer.m, z_loss=0.0, batch_size=4)
    mesh = make_mesh(config.layout, jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = jax.device_put(peer.params)
        ours = jax.device_get(jax.jit(make_loss_and_gradients(config))(params, place(batch, config, mesh)).gradients)
    whole = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(expected)))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(expected), strict=True):
        name = jax.tree_util.keystr(path)
        if "balance" not in name:  # it is stepped against the load, not by a gradient
            # A key bias has gradient zero but for rounding.
            assert np.linalg.norm(a - b) <= 1e-4 * (whole if "key_bias" in name else np.linalg.norm(b)), name


def test_a_cache_changes_nothing(peer: Peer) -> None:
    assert_cache_agrees(peer.params, peer.m)


def assert_cache_agrees(params: Tree, m: ModelConfig, several: int = 8) -> None:
    """Logits of sequences read a few tokens at a time are those of whole ones."""
    expected, extend, n = our_logits(params, m), make_extend(m), len(TOKENS)
    with jax.set_mesh(make_mesh(make_config(m).layout, jax.devices()[:1])):
        seen, found = empty_cache(m, n, TOKENS.shape[1]), list[np.ndarray]()
        for start in range(0, TOKENS.shape[1], several):
            logits, seen = extend(params, jnp.asarray(TOKENS[:, start : start + several]), jnp.int32(start), seen)
            found.append(np.asarray(logits))
    np.testing.assert_allclose(np.concatenate(found, axis=1), expected, atol=ATOL)


def greedy(params: Tree, m: ModelConfig, prompt: list[int], n: int) -> list[int]:
    with jax.set_mesh(make_mesh(make_config(m).layout, jax.devices()[:1])):
        drawn = generate_tokens(make_extend(m), params, m, prompt, max_tokens=n, temperature=0.0, top_p=1.0, seed=0)
        return list(drawn)


@pytest.mark.parametrize("peer", ["gemma3", "deepseek"], indirect=True)
def test_greedy_text_is_theirs(peer: Peer) -> None:
    prompt = torch.tensor(TOKENS[:1, :9], dtype=torch.long)
    peer.theirs.generation_config.eos_token_id = None
    whole = peer.theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False, pad_token_id=0
    )
    assert greedy(peer.params, peer.m, TOKENS[0, :9].tolist(), 12) == whole[0, 9:].tolist()


def glm_logits(p: Tree, m: ModelConfig, prefix: np.ndarray) -> np.ndarray:
    """GLM-130B as it is described and published (Zeng et al. 2022, section 2.1; SwissArmyTransformer): of `input_layernorm`, that of the
    first layer norms the embedding and those of the others the output of the layer before."""
    p = jax.tree.map(torch.tensor, p)
    alpha, (B, T), D, K = (2 * m.n_layers) ** 0.5, TOKENS.shape, m.d_model, m.d_head
    functional = torch.nn.functional

    def norm(x: Any, w: Tree) -> Any:
        return functional.layer_norm(x, (D,), w["scale"], w["bias"], m.norm_eps)

    def linear(x: Any, w: Tree, name: str) -> Any:
        return x @ w[name].reshape(x.shape[-1], -1) + w[f"{name}_bias"].reshape(-1)

    angles = torch.arange(T)[:, None] * m.rope_theta ** (-torch.arange(0, K, 2) / K)
    cos, sin = torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()

    def heads(x: Any) -> Any:
        return x.reshape(B, T, -1, K).transpose(1, 2)

    def rotate(x: Any) -> Any:
        return x * cos + torch.cat([-x[..., K // 2 :], x[..., : K // 2]], -1) * sin

    key = torch.arange(T)[None, None, :]
    visible = (key <= torch.arange(T)[None, :, None]) | (key < torch.tensor(prefix)[:, :, None])
    x = norm(p["embedding"]["tokens"][torch.tensor(TOKENS, dtype=torch.long)], p["embedding"]["norm"])
    for i in range(m.n_layers):
        w = jax.tree.map(lambda a, i=i: a[i], p["blocks"])
        q, k, v = (heads(linear(x, w["attn"], name)) for name in ("query", "key", "value"))
        scores = rotate(q) @ rotate(k).transpose(-1, -2) / K**0.5
        weights = scores.masked_fill(~visible[:, None], float("-inf")).softmax(-1)
        x = norm(alpha * x + linear((weights @ v).transpose(1, 2).reshape(B, T, -1), w["attn"], "out"), w["attn_norm"])
        hidden = functional.gelu(linear(x, w["mlp"], "gate"), approximate="tanh") * linear(x, w["mlp"], "up")
        x = norm(alpha * x + linear(hidden, w["mlp"], "down"), w["mlp_norm"])
    return (x @ p["embedding"]["tokens"].T).numpy()


def test_glm_130b() -> None:
    params = random_params(GLM)
    prefix = np.array([[0], [1], [11], [32]], np.int32)
    np.testing.assert_allclose(our_logits(params, GLM, prefix=prefix), glm_logits(params, GLM, prefix), atol=ATOL)
    assert_cache_agrees(params, GLM)
