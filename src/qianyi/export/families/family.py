"""What a family of models is, and what its files share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from qianyi.config.schema import ModelConfig
from qianyi.errors import CheckpointError
from qianyi.export.names import Table

Json = dict[str, Any]
Metadata = Mapping[str, Any]
"""Keys of a GGUF file, those of its architecture without the prefix (`llama.block_count` is `block_count`)."""


@dataclass(frozen=True)
class Gguf:
    """How GGUF files store the family (what `convert_hf_to_gguf.py` of llama.cpp writes)."""

    architecture: str
    """`general.architecture`."""
    table: Callable[[ModelConfig], Table]
    model_config: Callable[[Metadata], ModelConfig]


@dataclass(frozen=True)
class Family:
    """Models of one design, as Hugging Face `transformers` names and stores them."""

    name: str
    model_type: str
    """In config.json."""
    table: Callable[[ModelConfig], Table]
    model_config: Callable[[Json], ModelConfig]
    """From config.json."""
    hf_config: Callable[[ModelConfig], Json]
    """To config.json: all that the model's shape and arithmetic depend on."""
    base: str
    """Prefix of names that files written from the model without its head lack."""
    ignored: tuple[str, ...] = ()
    """Patterns of tensors that files may have and that say nothing new, such as copies of tied weights."""
    gguf: Gguf | None = None

    def differences(self, m: ModelConfig) -> dict[str, Any]:
        """The settings of a model that config.json cannot express, each with the value that it would need."""
        try:
            theirs = _computed(self.model_config(self.hf_config(m)))
        except ValidationError:  # their way to choose shapes does not give a model
            return {"shapes": "others"}
        return {key: theirs[key] for key, value in _computed(m).items() if theirs[key] != value}

    def matches(self, m: ModelConfig) -> bool:
        """A model of ours is of this family: it comes back from config.json as it was."""
        return not self.differences(m)


_FREE = {"dtype", "remat", "init", "init_std"}
"""Settings on which no output of given weights depends, but for rounding."""


def _computed(m: ModelConfig) -> dict[str, Any]:
    """The settings on which outputs depend, defaults resolved."""
    resolved = {"n_kv_heads": m.kv_heads, "head_dim": m.d_head, "d_ff": m.d_hidden, "n_encoder_layers": m.encoder_layers}
    return {key: value for key, value in (m.model_dump() | resolved).items() if key not in _FREE}


ACTIVATIONS: dict[str, Literal["gelu_erf", "gelu", "relu"]] = {"gelu": "gelu_erf", "gelu_new": "gelu", "relu": "relu"}
"""`model.mlp` by their name of an activation between two matrices, the most usual first."""


def their_activation(m: ModelConfig) -> str:
    """Their name; the most usual where they have none for what the model has."""
    return next((theirs for theirs, ours in ACTIVATIONS.items() if ours == m.mlp), "gelu")


def require(config: Mapping[str, Any], key: str, *allowed: Any) -> None:
    """Refuse what the model here does not compute.

    Raises:
        CheckpointError: the key is there with another value than the allowed.
    """
    value = config.get(key, allowed[0])
    if value not in allowed:
        raise CheckpointError(
            f"{key}={value} in the model's configuration is not supported, only {' or '.join(map(str, allowed))}"
        )


def need(config: Mapping[str, Any], key: str) -> Any:
    """A value that must be there.

    Raises:
        CheckpointError: it is missing.
    """
    if key not in config:
        raise CheckpointError(f"{key} is missing in the model's configuration")
    return config[key]
