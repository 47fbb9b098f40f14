"""A model of a wanted size, in the proportions of published ones."""

import math
import re

from qianyi.config.counts import parameter_count
from qianyi.config.load import load
from qianyi.errors import ConfigError
from qianyi.plan.scaling import tuned_batch_tokens

BASE = "llama3-8b"
"""The recipe whose architecture is scaled: width 102 to 130 times the depth, three and a half widths of feed-forward (Llama 3)."""
ASPECT = 118
UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}


def amount(text: str, name: str) -> float:
    """`175b`, `300B`, `1.5t`, `2m`.

    Raises:
        ConfigError: it is no number.
    """
    form = re.fullmatch(r"([\d_,]*\.?\d+(?:e\d+)?)\s*([kmbgt]?)", text.strip().lower())
    if form is None or not float(form[1].replace(",", "")):
        raise ConfigError(f"{name} {text}: expected a number above 0 such as 175b or 1.5t")
    return float(form[1].replace(",", "")) * UNITS[form[2]]


def model_overrides(params: float) -> list[str]:
    """Overrides of the recipe BASE that give about so many parameters.

    Raises:
        ConfigError: smaller than any such model.
    """
    base = load(BASE).config.model
    # Large models are divided by tensor parallelism: their heads are a multiple of eight.
    unit = 128 if params < 3e9 else 1024
    shapes = [
        _shape(width, layers)
        for width in range(unit, 65_537, unit)
        for layers in {max(2, round(width / ASPECT) + shift) for shift in range(-6, 7)}
    ]

    def distance(shape: dict[str, int]) -> float:
        size = parameter_count(base.model_copy(update=shape))
        return abs(math.log(size / params)) + 0.01 * abs(math.log(shape["d_model"] / shape["n_layers"] / ASPECT))

    best = min(shapes, key=distance)
    if abs(parameter_count(base.model_copy(update=best)) / params - 1) > 0.1:
        raise ConfigError(f"--params {params:.3g}: no such model of this family; take 60m to 10t, or a recipe of your own")
    return [f"model.{key}={value}" for key, value in best.items()]


def _shape(width: int, layers: int) -> dict[str, int]:
    heads = width // 128
    grouped = next(g for g in (8, 4, 2, 1) if heads % g == 0)
    return {
        "n_layers": layers,
        "d_model": width,
        "n_heads": heads,
        "n_kv_heads": grouped,
        "head_dim": 128,
        "d_ff": round(3.5 * width / 1024) * 1024 or 512,
    }


def batch_sequences(params: float, tokens: float, seq_len: int) -> int:
    """Sequences of a step for so large a run: a power of two near the batch of DeepSeek's law, which published runs of 100B and more
    share."""
    wanted = tuned_batch_tokens(6 * params * tokens) / seq_len
    return max(1, 2 ** round(max(0.0, math.log2(wanted))))
