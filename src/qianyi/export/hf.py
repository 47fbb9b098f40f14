"""Read and write a Hugging Face directory: config.json, model.safetensors (one file or several with an index), tokenizer.json."""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qianyi.config.schema import ModelConfig
from qianyi.data.special import special_tokens
from qianyi.data.stage import MANIFEST, Json, run_stage, write_json
from qianyi.data.tokenizer import end_token, load_tokenizer
from qianyi.errors import CheckpointError
from qianyi.export.families import family_in, family_of
from qianyi.export.families.family import Family
from qianyi.export.gguf_tokenizer import begin_with
from qianyi.export.names import Tensor, export_params, import_params
from qianyi.export.pretrained import LazyTensors, Pretrained, library
from qianyi.model.param import Tree
from qianyi.model.transformer import model_params

_ONE_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
"""Larger weights are written as several files."""


def to_hf(params: Tree, m: ModelConfig) -> dict[str, Tensor]:
    """Our parameters, whole and on the host, as a Hugging Face state dict.

    Raises:
        CheckpointError: `transformers` has no model of these parts.
    """
    return dict(export_params(params, model_params(m), family_of(m).table(m)))


def from_hf(state: Mapping[str, Tensor], m: ModelConfig) -> Tree:
    """A Hugging Face state dict as our parameters.

    Raises:
        CheckpointError: a tensor is missing, has another shape than the model, or has no place in it.
    """
    return _import(state, m, family_of(m))


def read_hf(directory: Path) -> Pretrained:
    """A model as a Hugging Face directory has it; it is computed in float32.

    Raises:
        CheckpointError: a file is missing or broken, or the model is of no family that is known here.
        DataError: tokenizer.json is broken.
        ResourceError: the library `safetensors` is not installed.
    """
    hf = _read_json(directory / "config.json")
    tokenizer = load_tokenizer(_required(directory / "tokenizer.json"))
    tokenizer.encode_special_tokens = False
    try:
        family = family_in(hf)
        model = family.model_config(hf).model_copy(update={"dtype": "float32"})
        params = _import(_open_weights(directory), model, family)
    except ValidationError as error:
        raise CheckpointError(f"{directory / 'config.json'}: it is that of no model: {error.errors()[0]['msg']}") from None
    except CheckpointError as error:
        raise CheckpointError(f"{directory}: {error}") from None
    end = _end_tokens(directory, hf)
    start = hf.get("bos_token_id")
    return Pretrained(model, params, tokenizer, end, next(iter(end), None) if start is None else start)


def write_hf(
    directory: Path, params: Tree, m: ModelConfig, tokenizer: Path | None, source: Json, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write a directory that `transformers` loads; it appears whole or not at all.

    Args:
        directory: must not be there, or be an earlier export.
        params: whole, float32, on the host.
        m: the model.
        tokenizer: tokenizer.json of the model's run. Its texts are made to begin with the end of another, as in training.
        source: what the export is made from; the same again does nothing.
        shard_bytes: weights beyond this go into several files.

    Raises:
        CheckpointError: `transformers` has no model of these parts, or the directory is something else.
        ResourceError: the library `safetensors` is not installed, or the disk is full.
    """
    family = family_of(m)
    if directory.exists() and not (directory / MANIFEST).exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise CheckpointError(f"{directory}: is there and is no earlier export; name another directory")

    def build(out: Path) -> Json:
        hf = {**family.hf_config(m), "dtype": "float32"}
        if tokenizer is not None:
            end = _write_tokenizer(tokenizer, out)
            hf |= {"bos_token_id": end, "eos_token_id": end, **_start_of_targets(m, tokenizer)}
        write_json(out / "config.json", hf)
        return {"weights": _write_weights(out, export_params(params, model_params(m), family.table(m)), shard_bytes)}

    library("safetensors")
    run_stage(directory, {"inputs": [], "source": source, "model": m.model_dump(mode="json")}, {}, build)


def _import(state: Mapping[str, Tensor], m: ModelConfig, family: Family) -> Tree:
    if not any(name.startswith(family.base) for name in state):  # written from the model without its head
        state = LazyTensors({f"{family.base}{name}": partial(state.__getitem__, name) for name in state})
    return import_params(state, model_params(m), family.table(m), family.ignored)


def _required(path: Path) -> Path:
    if not path.exists():
        raise CheckpointError(f"{path}: missing; a Hugging Face directory has config.json, tokenizer.json and {_ONE_FILE}")
    return path


def _read_json(path: Path) -> Json:
    try:
        return json.loads(_required(path).read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None


def _open_weights(directory: Path) -> LazyTensors:
    if (directory / _ONE_FILE).exists():
        files = [_ONE_FILE]
    elif (directory / _INDEX).exists():
        files = sorted(set(_read_json(directory / _INDEX)["weight_map"].values()))
    else:
        raise CheckpointError(f"neither {_ONE_FILE} nor {_INDEX} is there; other formats of weights are not read")
    safetensors = library("safetensors")
    tensors: dict[str, Any] = {}
    for file in files:
        try:
            opened = safetensors.safe_open(directory / file, framework="numpy")
        except (OSError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{file} is missing or broken: {error}") from None
        tensors |= {name: partial(opened.get_tensor, name) for name in opened.keys()}  # noqa: SIM118 (it is no dict)
    return LazyTensors(tensors)


def _end_tokens(directory: Path, hf: Json) -> frozenset[int]:
    """Where `transformers` ends a text: generation_config.json, else config.json."""
    path = directory / "generation_config.json"
    found = (_read_json(path) if path.exists() else {}).get("eos_token_id", hf.get("eos_token_id"))
    return frozenset(found if isinstance(found, list) else [] if found is None else [found])


def _start_of_targets(m: ModelConfig, tokenizer: Path) -> Json:
    """In training a decoder starts a target with the padding token."""
    padding = special_tokens(load_tokenizer(tokenizer)).roles.get("padding")
    if m.kind != "encoder_decoder" or padding is None:
        return {}
    return {"pad_token_id": padding, "decoder_start_token_id": padding}


def _write_tokenizer(path: Path, out: Path) -> int:
    """tokenizer.json and what `transformers` needs beside it; returns the token that ends, and begins, a text."""
    tokenizer = load_tokenizer(path)
    end = end_token(tokenizer, path)
    begin_with(tokenizer, end)
    (out / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    name = tokenizer.id_to_token(end)
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    write_json(out / "tokenizer_config.json", {**kind, "bos_token": name, "eos_token": name})
    return end


def _write_weights(out: Path, tensors: Iterator[tuple[str, Tensor]], shard_bytes: int) -> list[str]:
    """One file, or several and their index; at most one file's tensors are in memory."""
    save_file = library("safetensors.numpy").save_file
    shards: list[dict[str, int]] = []
    """Names and bytes of the tensors in each file."""

    def save(shard: dict[str, Tensor]) -> None:
        shards.append({name: tensor.nbytes for name, tensor in shard.items()})
        save_file(shard, out / f"shard-{len(shards)}", metadata={"format": "pt"})

    shard: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if shard and sum(t.nbytes for t in shard.values()) + tensor.nbytes > shard_bytes:
            save(shard)
            shard = {}
        shard[name] = tensor
    save(shard)
    total = len(shards)
    files = [_ONE_FILE] if total == 1 else [f"model-{i:05d}-of-{total:05d}.safetensors" for i in range(1, total + 1)]
    for i, file in enumerate(files, 1):
        (out / f"shard-{i}").rename(out / file)
        (out / file).chmod((out / "config.json").stat().st_mode)  # the library lets nobody else read what it writes
    if total > 1:
        weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        write_json(
            out / _INDEX, {"metadata": {"total_size": sum(map(sum, (s.values() for s in shards)))}, "weight_map": weight_map}
        )
    return files
