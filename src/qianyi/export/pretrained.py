"""A model from a file: a GGUF file, or a Hugging Face directory."""

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from qianyi.config.schema import ModelConfig
from qianyi.errors import ResourceError
from qianyi.export.names import Tensor
from qianyi.model.param import Tree


@dataclass(frozen=True)
class Pretrained:
    """All that text is generated with."""

    model: ModelConfig
    params: Tree
    """float32, on the host."""
    tokenizer: Tokenizer
    """Finds special tokens in a text, and adds those that begin one."""
    end_tokens: frozenset[int]
    """Each ends a text."""
    start_token: int | None
    """What an empty prompt becomes; None: the model reads nothing out of nothing."""


class LazyTensors(Mapping[str, Tensor]):
    """Tensors that are read when they are asked for, so that one at a time is in memory."""

    def __init__(self, read: dict[str, Callable[[], Tensor]]):
        self._read = read

    def __getitem__(self, name: str) -> Tensor:
        return self._read[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)

    def __contains__(self, name: object) -> bool:
        return name in self._read  # the base class would read the tensor


def library(module: str) -> Any:
    """A library of the extra `export`.

    Raises:
        ResourceError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        package = module.partition(".")[0]
        raise ResourceError(f"this needs the package `{package}`: pip install 'qianyi[export]'") from None
