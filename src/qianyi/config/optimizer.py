"""The configuration of the optimizer and of its learning rate."""

from typing import Annotated, Literal

from pydantic import Field

from qianyi.config.part import Count, Fraction, Part, Positive


class OptimizerConfig(Part):
    """The optimizer, with global-norm clipping before it. A trust ratio, a factored moment and an orthogonal update are those of one
    layer's (and one expert's) matrix, [inputs, outputs] with all heads together."""

    kind: Literal["adamw", "lamb", "lars", "adafactor", "lion", "sgd", "muon"] = "adamw"
    """adamw (Loshchilov & Hutter 2019); lamb (You et al. 2020) and lars (You et al. 2017): Adam and SGD with a trust ratio per matrix;
    adafactor (Shazeer & Stern 2018); lion (Chen et al. 2023); sgd with momentum; muon (Jordan et al. 2024; Liu et al. 2025) for matrices of
    layers, adamw for everything else."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    """Peak learning rate; at another batch size see schedule.scale_rule."""
    b1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """adamw, lamb, muon's adamw: decay of the first moment. lion: the moment's share in the update."""
    b2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """adamw, lamb, muon's adamw: decay of the second moment. lion: decay of the moment."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """adamw, lamb, muon's adamw: added to the root of the second moment. adafactor: its square is added to squared gradients (the
    paper's 1e-30 is 1e-15 here)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled weight decay of matrices; vectors (biases, norm scales) are not decayed. lamb, lars: it takes part in the trust ratio."""
    decay_power: Literal[1, 2] = 1
    """A step takes weight_decay * rate ** decay_power of a matrix away; 2: PaLM (Chowdhery et al. 2022, section 5), with weight_decay 1."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Gradients are scaled down to this global norm; null: never."""
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    """sgd, lars, muon, adafactor: decay of the moment; null: 0.9, in muon 0.95, in adafactor 0 (none)."""
    nesterov: bool = False
    """sgd, lars: look ahead by one step (Nesterov 1983); muon always does."""
    trust_coefficient: Annotated[float, Field(gt=0)] = 0.001
    """lars: the length of an update relative to its matrix, at learning rate 1."""
    second_moment_exponent: Annotated[float, Field(gt=0, le=1)] = 0.8
    """adafactor: at step n the second moment decays by 1 - n ** -exponent (section 7.2)."""
    update_rms: Annotated[float, Field(gt=0)] | None = 1.0
    """adafactor: updates are scaled down to this root mean square (section 6); null: never."""
    parameter_scaling: bool = True
    """adafactor: updates are relative to the root mean square of their parameter, at least 1e-3 (section 8)."""
    factored: bool = True
    """adafactor: of a matrix keep the second moment's means of rows and columns alone; false: all of it, as PaLM does."""
    newton_schulz_steps: Positive = 5
    """muon: iterations that make an update nearly orthogonal."""

    @property
    def moment_decay(self) -> float:
        """`momentum`, or what is usual."""
        usual = {"sgd": 0.9, "lars": 0.9, "muon": 0.95}
        return usual.get(self.kind, 0.0) if self.momentum is None else self.momentum


class ScheduleConfig(Part):
    """Learning rate over steps: linear warm-up, then `kind`."""

    kind: Literal["cosine", "wsd", "linear", "constant", "rsqrt"] = "cosine"
    """cosine; wsd: constant, then linear decay over the last decay_fraction; linear; constant; rsqrt: with the inverse square root of
    the step from the end of the warm-up (Vaswani et al. 2017) or hold_steps (T5, PaLM) on."""
    warmup_steps: Count = 0
    """Steps of linear warm-up from zero."""
    hold_steps: Count = 0
    """rsqrt: the peak lasts until this step."""
    decay_fraction: Fraction = 0.2
    """wsd: share of all steps spent decaying."""
    final_ratio: Fraction = 0.1
    """cosine, wsd, linear: learning rate at the end, as a share of the peak."""
    scale_rule: Literal["none", "linear", "sqrt"] = "none"
    """The peak follows train.batch_size: optimizer.learning_rate times batch_size / base_batch_size (Goyal et al. 2017), or times the
    square root of that (You et al. 2020)."""
    base_batch_size: Positive | None = None
    """Sequences per step for which optimizer.learning_rate was found."""
