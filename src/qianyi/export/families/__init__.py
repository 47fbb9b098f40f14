"""Families of models that exist elsewhere too. A new one is a file here and a line in `FAMILIES`."""

from qianyi.config.schema import ModelConfig
from qianyi.errors import CheckpointError
from qianyi.export.families import (
    bloom,
    cohere,
    deepseek_v3,
    gemma2,
    gemma3,
    gpt2,
    llama,
    mistral,
    mixtral,
    opt,
    qwen3,
    qwen3_moe,
)
from qianyi.export.families.family import Family, Json

FAMILIES = (
    gpt2.FAMILY,
    llama.FAMILY,
    opt.FAMILY,
    bloom.FAMILY,
    cohere.FAMILY,
    mistral.FAMILY,
    mixtral.FAMILY,
    qwen3.FAMILY,
    qwen3_moe.FAMILY,
    gemma2.FAMILY,
    gemma3.FAMILY,
    deepseek_v3.FAMILY,
)
"""Where a model is of two (a Mistral without a window is a Llama), the first is written."""

_NEAREST = 3


def family_of(m: ModelConfig) -> Family:
    """The family of a model.

    Raises:
        CheckpointError: none is made of these parts.
    """
    for family in FAMILIES:
        if family.matches(m):
            return family
    nearest = sorted(FAMILIES, key=lambda family: len(family.differences(m)))[:_NEAREST]
    needs = "; ".join(
        f"{family.name} needs {', '.join(f'{key}={value}' for key, value in family.differences(m).items())}" for family in nearest
    )
    raise CheckpointError(f"no family of Hugging Face models is made of these parts: {needs}")


def family_in(hf: Json) -> Family:
    """The family that a config.json names.

    Raises:
        CheckpointError: it is not known.
    """
    for family in FAMILIES:
        if family.model_type == hf.get("model_type"):
            return family
    known = ", ".join(f.model_type for f in FAMILIES)
    raise CheckpointError(f"config.json has model_type={hf.get('model_type')}; known are {known}")


def family_in_gguf(architecture: str) -> Family:
    """The family that a GGUF file names.

    Raises:
        CheckpointError: it is not known.
    """
    for family in FAMILIES:
        if family.gguf is not None and family.gguf.architecture == architecture:
            return family
    known = ", ".join(f.gguf.architecture for f in FAMILIES if f.gguf is not None)
    raise CheckpointError(f"general.architecture is {architecture}; known are {known}")
