"""FLOPs of a compiled step beside the model's."""

from collections.abc import Mapping
from dataclasses import dataclass

from qianyi.compile.target import Target
from qianyi.config.objective import target_length
from qianyi.config.schema import Config
from qianyi.plan.build import model_numbers
from qianyi.program.flops import Product


@dataclass(frozen=True)
class Flops:
    """Of a step on one device: matrix products alone, as in the FLOPs of a model."""

    model: float
    """By the convention of `qianyi.config.counts.MFU_CONVENTION`."""
    forward: float
    recompute: float
    """Of forward passes that run again on the way back; in a pipeline the only one of the last stage counts among them."""
    backward: float
    attention: float
    """Of these, in fused attention kernels."""

    @property
    def program(self) -> float:
        return self.forward + self.recompute + self.backward


def count_flops(products: Mapping[Product, float], config: Config, target: Target) -> Flops:
    parts = dict.fromkeys(("forward", "recompute", "backward"), 0.0)
    for product, times in products.items():
        parts[product.part] += product.flops * times
    attention = sum(product.flops * times for product, times in products.items() if product.attention)
    tokens = config.train.batch_size * config.train.seq_len / target.n_devices
    of_token = model_numbers(config.model, config.train.seq_len, target_length(config.train)).flops_per_token
    return Flops(model=float(of_token) * tokens, attention=attention, **parts)
