"""`qianyi generate`: text from the newest checkpoint of a run, or from a model in a file."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from tokenizers import Tokenizer

from qianyi.cli.run import begin, restore_params
from qianyi.config.schema import LayoutConfig, ModelConfig, RunConfig
from qianyi.data.prepare import tokenizer_path
from qianyi.data.tokenizer import end_token
from qianyi.errors import DataError
from qianyi.export.gguf import read_gguf
from qianyi.export.hf import read_hf
from qianyi.generate.sample import generate_tokens, make_extend, require_decoder, stream_text
from qianyi.model.param import Tree
from qianyi.monitor.sinks import append_json_line
from qianyi.parallel.mesh import make_mesh
from qianyi.parallel.runtime import initialize


@dataclass(frozen=True)
class Writer:
    """A model that continues texts."""

    model: ModelConfig
    params: Tree
    tokenizer: Tokenizer
    read: Callable[[str], list[int]]
    """A prompt as the tokens that the model sees."""
    end: frozenset[int]
    keep: Callable[[dict[str, Any]], None]
    """Told each sample."""


def run_recipe(recipe: str, overrides: list[str], prompts: list[str], max_tokens: int, stream: bool, **sampling: Any) -> None:
    """Text from the newest checkpoint."""
    session = begin(recipe, overrides)
    require_decoder(session.config.model)
    tokenizer = session.tokenizer
    end = end_token(tokenizer, tokenizer_path(session.config.data))
    mesh = make_mesh(LayoutConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        params, step = restore_params(session, mesh)

        def read(prompt: str) -> list[int]:
            """Documents begin after the end of another."""
            return [end, *tokenizer.encode(prompt, add_special_tokens=False).ids]

        def keep(sample: dict[str, Any]) -> None:
            append_json_line(session.run_dir / "samples.jsonl", {**sample, "step": step, "time": time.time()})

        writer = Writer(session.config.model, params, tokenizer, read, frozenset({end}), keep)
        _write(writer, prompts, max_tokens, stream, **sampling)


def run_model(path: Path, prompts: list[str], max_tokens: int, stream: bool, **sampling: Any) -> None:
    """Text from a GGUF file or a Hugging Face directory."""
    initialize(RunConfig())
    found = read_gguf(path) if path.suffix == ".gguf" else read_hf(path)
    require_decoder(found.model)

    def read(prompt: str) -> list[int]:
        ids = found.tokenizer.encode(prompt).ids or ([] if found.start_token is None else [found.start_token])
        if not ids:
            raise DataError(f"{path}: its texts have no start token: say how the text begins with --prompt")
        return ids

    with jax.set_mesh(make_mesh(LayoutConfig(), jax.devices()[:1])):
        _move_to_device(found.params)
        writer = Writer(found.model, found.params, found.tokenizer, read, found.end_tokens, lambda _: None)
        _write(writer, prompts, max_tokens, stream, **sampling)


def _move_to_device(params: Tree) -> None:
    """One array after the other, so that memory never holds all of them twice."""
    for name, node in params.items():
        if isinstance(node, dict):
            _move_to_device(node)
        else:
            params[name] = jax.block_until_ready(jax.device_put(node))


def _write(writer: Writer, prompts: list[str], max_tokens: int, stream: bool, **sampling: Any) -> None:
    """Continue each prompt.

    Args:
        sampling: `temperature`, `top_p` and `seed` of `generate_tokens`.
    """
    extend = make_extend(writer.model)
    for prompt in prompts:
        ids = writer.read(prompt)
        tokens = generate_tokens(extend, writer.params, writer.model, ids, max_tokens=max_tokens, **sampling)
        text = ""
        if stream:
            print(prompt, end="", flush=True)
        for piece in stream_text(writer.tokenizer, ids, tokens, writer.end):
            text += piece
            if stream:
                print(piece, end="", flush=True)
        print("" if stream else prompt + text, flush=True)
        writer.keep({"prompt": prompt, "text": text, **sampling})
