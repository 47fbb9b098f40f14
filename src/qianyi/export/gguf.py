"""Read a GGUF file, the format of llama.cpp: configuration, weights (whichever way they are quantized) and tokenizer in one."""

from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qianyi.errors import CheckpointError
from qianyi.export.families import family_in_gguf
from qianyi.export.gguf_tokenizer import gguf_tokenizer
from qianyi.export.names import Tensor, import_params
from qianyi.export.pretrained import LazyTensors, Pretrained, library
from qianyi.model.transformer import model_params


def read_gguf(path: Path) -> Pretrained:
    """A model as a GGUF file has it; it is computed in float32.

    Raises:
        CheckpointError: the file is missing or broken, or holds a model or tokenizer that is not known here.
        ResourceError: the library `gguf` is not installed.
    """
    reader = _open(path)
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    try:
        family = family_in_gguf(str(metadata.get("general.architecture")))
        assert family.gguf is not None
        tokenizer = gguf_tokenizer(metadata)
        model = family.gguf.model_config(_of_architecture(metadata, reader)).model_copy(update={"dtype": "float32"})
        state = LazyTensors({tensor.name: partial(_dequantize, tensor) for tensor in reader.tensors})
        params = import_params(state, model_params(model), family.gguf.table(model))
    except ValidationError as error:
        raise CheckpointError(f"{path}: its configuration is that of no model: {error.errors()[0]['msg']}") from None
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    end, start = (metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "bos"))
    return Pretrained(model, params, tokenizer, frozenset() if end is None else frozenset({end}), end if start is None else start)


def _open(path: Path) -> Any:
    """The library's reader; it maps the file and reads no tensor."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        return library("gguf").GGUFReader(path)
    except (ValueError, KeyError, IndexError) as error:  # what the library raises on a file that is cut off or something else
        raise CheckpointError(f"{path}: not a GGUF file, or cut off ({error})") from None


def _of_architecture(metadata: dict[str, Any], reader: Any) -> dict[str, Any]:
    """The keys of the architecture without its prefix, and what else a configuration is made from."""
    prefix = f"{metadata['general.architecture']}."
    own = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    return {"vocab_size": len(metadata["tokenizer.ggml.tokens"]), **own, "tensors": {tensor.name for tensor in reader.tensors}}


def _dequantize(tensor: Any) -> Tensor:
    """One tensor, float32."""
    try:
        return library("gguf").dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError:
        raise CheckpointError(
            f"`{tensor.name}` is stored as {tensor.tensor_type.name}, which the library gguf cannot read"
        ) from None
