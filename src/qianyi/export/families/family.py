"""What a family of models is, and what its files share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from qianyi.config.schema import ModelConfig
from qianyi.errors import CheckpointError
from qianyi.export.names import Table
from qianyi.model.width import query_multiplier, width_ratio

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


_FREE: dict[str, Any] = {
    **dict.fromkeys(("dtype", "matmul", "remat", "init", "init_std"), True),
    "moe": {"capacity_factor", "group_tokens", "balance_rate"},
}
"""Settings on which what given weights compute does not depend, but for rounding and what a capacity drops in training."""


def _computed(m: ModelConfig) -> dict[str, Any]:
    """The settings on which outputs depend, defaults resolved; `attention.window` is the window of attention."""
    some_global = any(m.local_layers) and not all(m.local_layers)
    resolved: dict[str, Any] = {
        "n_kv_heads": m.kv_heads,
        "head_dim": m.d_head,
        "n_encoder_layers": m.encoder_layers,
        "d_ff": m.d_hidden if m.n_blocks < m.n_layers or m.mixture is None else m.d_expert,
        "moe.d_ff": m.d_expert,
        "attention.scale": m.attention.scale or m.d_key**-0.5,
        "attention.global_every": m.attention.global_every if some_global else 0,
    }
    if (width_ratio(m), query_multiplier(m)) == (1, 1):
        resolved |= {"mup_base_width": None, "mup_base_head_dim": None}
    return _flat(m.model_dump(exclude=_FREE)) | resolved


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings of parts with dots in their names."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


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


def need(config: Mapping[str, Any], key: str, *also: str) -> Any:
    """A value that must be there; `also`: keys that mean the same in other files.

    Raises:
        CheckpointError: it is missing.
    """
    for name in (key, *also):
        if name in config:
            return config[name]
    raise CheckpointError(f"{key} is missing in the model's configuration")
