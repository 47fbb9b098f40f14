"""GPT-2 and Llama compute what Hugging Face `transformers` computes, in both directions of the name map."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from models import GPT, LLAMA, host_batch, make_config, place

from qianyi.config.schema import ModelConfig
from qianyi.errors import CheckpointError
from qianyi.export.hf import from_hf, to_hf
from qianyi.model.param import Tree
from qianyi.model.transformer import model_logits
from qianyi.parallel.mesh import make_mesh
from qianyi.train.state import init_state
from qianyi.train.step import make_loss_and_gradients

torch = pytest.importorskip("torch", reason="parity with PyTorch needs the extra `parity`")
transformers = pytest.importorskip("transformers", reason="parity with Hugging Face needs the extra `parity`")

LLAMA_TIED = LLAMA.model_copy(update={"tied_embeddings": True})
MODELS = {"gpt2": GPT, "llama": LLAMA, "llama tied": LLAMA_TIED}


def hf_model(m: ModelConfig):
    """The peer, with random weights that are large enough to matter (biases and norm scales too)."""
    torch.manual_seed(0)
    if m.position == "learned":
        config = transformers.GPT2Config(
            vocab_size=m.vocab_size, n_positions=m.max_seq_len, n_embd=m.d_model, n_layer=m.n_layers, n_head=m.n_heads,
            attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, attn_implementation="eager",
        )  # fmt: skip
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.LlamaConfig(
            vocab_size=m.vocab_size, max_position_embeddings=m.max_seq_len, hidden_size=m.d_model,
            intermediate_size=m.d_hidden, num_hidden_layers=m.n_layers, num_attention_heads=m.n_heads,
            num_key_value_heads=m.kv_heads, head_dim=m.d_head, rms_norm_eps=m.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": m.rope_theta},
            tie_word_embeddings=m.tied_embeddings, attn_implementation="eager",
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.float()


def hf_state(model) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}


def our_logits(params: Tree, m: ModelConfig, tokens: np.ndarray) -> np.ndarray:
    with jax.set_mesh(make_mesh(make_config(m).layout, jax.devices()[:1])):
        on_device = jax.shard_map(
            lambda p, t: model_logits(p, {"inputs": t}, make_config(m), lambda _, w: w), in_specs=P(), out_specs=P()
        )
        return np.asarray(jax.jit(on_device)(params, tokens))


@pytest.mark.parametrize("m", MODELS.values(), ids=MODELS.keys())
def test_logits_of_their_weights(m: ModelConfig) -> None:
    theirs = hf_model(m)
    tokens = host_batch()["inputs"]
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(our_logits(from_hf(hf_state(theirs), m), m, tokens), expected, atol=1e-4)


@pytest.mark.parametrize("m", MODELS.values(), ids=MODELS.keys())
def test_logits_of_our_weights_in_their_model(m: ModelConfig) -> None:
    config = make_config(m)
    mesh = make_mesh(config.layout, jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = jax.device_get(init_state(config, mesh).params)
    theirs = hf_model(m)
    state = {name: torch.tensor(array) for name, array in to_hf(params, m).items()}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    tokens = host_batch()["inputs"]
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(our_logits(params, m, tokens), expected, atol=1e-4)


@pytest.mark.parametrize("m", MODELS.values(), ids=MODELS.keys())
def test_gradients_are_those_of_autograd(m: ModelConfig) -> None:
    """PyTorch differentiates the same loss of the same weights; every gradient leaf agrees."""
    theirs = hf_model(m)
    batch = host_batch()
    targets = torch.tensor(batch["targets"], dtype=torch.long)
    logits = theirs(torch.tensor(batch["inputs"], dtype=torch.long)).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1).backward()
    named = {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}
    expected = from_hf(named, m)

    config = make_config(m, z_loss=0.0)
    mesh = make_mesh(config.layout, jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = jax.device_put(from_hf(hf_state(theirs), m))
        ours = jax.device_get(jax.jit(make_loss_and_gradients(config))(params, place(batch, config, mesh)).gradients)
    whole = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(expected)))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(expected), strict=True):
        # A key bias has gradient zero but for rounding.
        size = whole if "key_bias" in jax.tree_util.keystr(path) else np.linalg.norm(b)
        assert np.linalg.norm(a - b) <= 1e-4 * size, jax.tree_util.keystr(path)


@pytest.mark.parametrize("m", MODELS.values(), ids=MODELS.keys())
def test_round_trip_is_exact(m: ModelConfig) -> None:
    state = hf_state(hf_model(m))
    back = to_hf(from_hf(state, m), m)
    for name, array in back.items():
        np.testing.assert_array_equal(array, state[name])
    assert set(state) - set(back) <= {"lm_head.weight"}


def test_wrong_weights_are_refused() -> None:
    state = hf_state(hf_model(GPT))
    with pytest.raises(CheckpointError, match=r"transformer\.wte\.weight.*\(256, 64\).*\(512, 64\)"):
        from_hf(state, GPT.model_copy(update={"vocab_size": 512}))
    del state["transformer.h.1.ln_2.bias"]
    with pytest.raises(CheckpointError, match=r"transformer\.h\.1\.ln_2\.bias"):
        from_hf(state, GPT)
