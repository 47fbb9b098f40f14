"""GPT-2 and Llama compute what Hugging Face `transformers` computes, in both directions of the name map and of directories."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from models import GPT, LLAMA, host_batch, logits_of, make_config, place
from safetensors.numpy import save_file

from qianyi.cli.generate import run_model
from qianyi.config.model import RopeScalingConfig
from qianyi.config.schema import ModelConfig
from qianyi.data.tokenizer import train_tokenizer
from qianyi.errors import CheckpointError
from qianyi.export.families import family_of
from qianyi.export.hf import from_hf, read_hf, to_hf, write_hf
from qianyi.parallel.mesh import make_mesh
from qianyi.train.state import init_state
from qianyi.train.step import make_loss_and_gradients

torch = pytest.importorskip("torch", reason="parity with PyTorch needs the extra `parity`")
transformers = pytest.importorskip("transformers", reason="parity with Hugging Face needs the extra `parity`")

LLAMA_TIED = LLAMA.model_copy(update={"tied_embeddings": True})
MODELS = {"gpt2": GPT, "llama": LLAMA, "llama tied": LLAMA_TIED}
STRETCHED = (
    RopeScalingConfig(kind="linear", factor=3.0),
    RopeScalingConfig(kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=2.0, original_max_seq_len=12),
)


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


@pytest.mark.parametrize("m", MODELS.values(), ids=MODELS.keys())
def test_logits_of_their_weights(m: ModelConfig) -> None:
    theirs = hf_model(m)
    tokens = host_batch()["inputs"]
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(logits_of(from_hf(hf_state(theirs), m), m, tokens), expected, atol=1e-4)


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
    np.testing.assert_allclose(logits_of(params, m, tokens), expected, atol=1e-4)


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


@pytest.mark.parametrize("scaling", STRETCHED, ids=[s.kind for s in STRETCHED])
def test_stretched_positions(scaling: RopeScalingConfig) -> None:
    m = LLAMA.model_copy(update={"rope_scaling": scaling, "head_dim": 8, "rope_theta": 100.0})
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**family_of(m).hf_config(m))).float()
    tokens = host_batch()["inputs"]
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    assert np.abs(expected).max() > 0.05
    np.testing.assert_allclose(logits_of(from_hf(hf_state(theirs), m), m, tokens), expected, atol=1e-5)
    assert family_of(m).model_config(theirs.config.to_dict()).rope_scaling == scaling


VOCAB = 300
TEXT = "却说曹操 took 12 ships,\n  and sailed  away 🌙"
ON_DISK = {name: m.model_copy(update={"vocab_size": VOCAB}) for name, m in MODELS.items()}


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(["the ships sailed away", "却说曹操引百万大军"] * 20, VOCAB).save(str(path))
    return path


@pytest.mark.parametrize("m", ON_DISK.values(), ids=ON_DISK.keys())
def test_our_directory_is_one_of_theirs(m: ModelConfig, tmp_path: Path, tokenizer_file: Path) -> None:
    """In several files with an index, tokenizer and all; and it comes back to the bit."""
    params = from_hf(hf_state(hf_model(m)), m)
    write_hf(tmp_path / "out", params, m, tokenizer_file, {"step": 1}, shard_bytes=100_000)
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2

    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = host_batch()["inputs"]
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(logits_of(params, m, tokens), expected, atol=1e-4)

    found = read_hf(tmp_path / "out")
    assert family_of(m).differences(found.model) == {} and family_of(m).hf_config(found.model) == family_of(m).hf_config(m)
    jax.tree.map(np.testing.assert_array_equal, found.params, params)
    theirs_read = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")(TEXT)["input_ids"]
    assert found.tokenizer.encode(TEXT).ids == theirs_read and theirs_read[0] == 0
    assert found.end_tokens == {0} and theirs.generation_config.eos_token_id == 0


@pytest.mark.parametrize("m", ON_DISK.values(), ids=ON_DISK.keys())
def test_their_directory_continues_a_text_as_they_do(
    m: ModelConfig, tmp_path: Path, tokenizer_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Saved by transformers; GPT-2 also as the hub has it, without the prefix of the model that has a head."""
    theirs = hf_model(m).eval()
    theirs.generation_config.eos_token_id = 7
    theirs.save_pretrained(tmp_path)
    shutil.copy(tokenizer_file, tmp_path / "tokenizer.json")
    if m.position == "learned":
        without = {
            name.removeprefix("transformer."): array for name, array in hf_state(theirs).items() if name != "lm_head.weight"
        }
        save_file(without, tmp_path / "model.safetensors", metadata={"format": "pt"})
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file))
    ids = tokenizer("the ships", return_tensors="pt")["input_ids"]
    whole = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False, pad_token_id=0)
    run_model(tmp_path, ["the ships"], 16, stream=False, temperature=0.0, top_p=1.0, seed=0)
    continued = whole[0][:-1] if whole[0][-1] == 7 else whole[0]
    assert capsys.readouterr().out == tokenizer.decode(continued, skip_special_tokens=True) + "\n"


def test_half_precision_is_read_as_it_is(tmp_path: Path, tokenizer_file: Path) -> None:
    hf_model(ON_DISK["llama"]).bfloat16().save_pretrained(tmp_path)
    shutil.copy(tokenizer_file, tmp_path / "tokenizer.json")
    expected = hf_model(ON_DISK["llama"]).bfloat16().float()
    found = read_hf(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, found.params, from_hf(hf_state(expected), ON_DISK["llama"]))
    assert found.model.dtype == "float32"


def test_a_directory_is_replaced_by_an_export_alone(tmp_path: Path) -> None:
    m, out = ON_DISK["llama"], tmp_path / "out"
    params = from_hf(hf_state(hf_model(m)), m)
    write_hf(out, params, m, None, {"step": 1})
    first = (out / "model.safetensors").stat().st_mtime_ns
    write_hf(out, params, m, None, {"step": 1})
    assert (out / "model.safetensors").stat().st_mtime_ns == first
    write_hf(out, params, m, None, {"step": 2})
    assert (out / "model.safetensors").stat().st_mtime_ns > first
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    for taken in (tmp_path / "mine", tmp_path / "mine" / "thesis.tex"):
        with pytest.raises(CheckpointError, match="is no earlier export"):
            write_hf(taken, params, m, None, {"step": 1})


def test_broken_directories_are_one_message(tmp_path: Path, tokenizer_file: Path) -> None:
    m = ON_DISK["llama"]
    write_hf(tmp_path, from_hf(hf_state(hf_model(m)), m), m, tokenizer_file, {}, shard_bytes=100_000)
    config = json.loads((tmp_path / "config.json").read_text())

    def refused(message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            read_hf(tmp_path)

    next(tmp_path.glob("model-00002-*")).write_bytes(b"nothing")
    refused("model-00002-of-.* is missing or broken")
    (tmp_path / "model.safetensors.index.json").unlink()
    refused(r"neither model\.safetensors nor model\.safetensors\.index\.json is there")
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": "wide"}))
    refused(r"config\.json: it is that of no model: .*integer")
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    refused("model_type=mamba; known are gpt2, llama")
    (tmp_path / "config.json").write_text("{")
    refused(r"config\.json: cannot be read")
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(r"tokenizer\.json: missing")


def test_wrong_weights_are_refused() -> None:
    state = hf_state(hf_model(GPT))
    with pytest.raises(CheckpointError, match=r"transformer\.wte\.weight.*\(256, 64\).*\(512, 64\)"):
        from_hf(state, GPT.model_copy(update={"vocab_size": 512}))
    del state["transformer.h.1.ln_2.bias"]
    with pytest.raises(CheckpointError, match=r"transformer\.h\.1\.ln_2\.bias"):
        from_hf(state, GPT)
