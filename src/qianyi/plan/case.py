"""What the cost model computes with: numbers of a model, a layout, a method and a machine.

Every field is a number or an array of numbers, and arrays of one case have one shape. So the same formulas cost one training step, a
million candidates of a search (arrays over layouts), or a table of published runs (arrays over everything). Flags are 0 or 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np

Number = Any
"""float, or float64 array; fields of one case broadcast together."""


class Numbers:
    """A dataclass of numbers."""

    @classmethod
    def stack(cls, items: Sequence[Self]) -> Self:
        """Of many with numbers, one with arrays."""
        return cls(**{f.name: np.array([getattr(i, f.name) for i in items], np.float64) for f in fields(cls)})  # type: ignore[arg-type]

    def take(self, index: Any) -> Self:
        """Some of the elements; what is a plain number stays so."""
        at = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return type(self)(**{k: v[index] if isinstance(v, np.ndarray) and v.ndim else v for k, v in at.items()})


@dataclass(frozen=True, kw_only=True)
class Model(Numbers):
    """A Transformer in numbers."""

    vocab_size: Number
    d_model: Number
    dense_layers: Number
    """Layers with a dense feed-forward part."""
    moe_layers: Number
    """Layers with experts."""
    n_heads: Number
    qkv_width: Number
    """Columns of the matrices that make queries, keys and values."""
    kv_width: Number
    """Columns of keys and values as they travel between devices."""
    d_key: Number
    d_value: Number
    attention_params: Number
    """Matrix parameters of attention, per layer."""
    ff_matrices: Number
    """3 with a gate, else 2."""
    d_ff: Number
    d_expert: Number
    n_experts: Number
    """Of a layer; 0: none."""
    experts_per_token: Number
    shared_experts: Number
    seen: Number
    """Keys that a query needs to see, on average over layers (half the sequence where attention is causal)."""
    tied: Number
    """1: the output projection is the embedding."""
    layer_share: Number
    """Tokens that a layer sees, on average over layers, relative to train.seq_len: decoders of encoder-decoders see targets alone."""
    head_share: Number
    """The same of the output projection."""
    other_params: Number
    """Norms, biases, positions: what no matrix product uses."""

    @property
    def n_layers(self) -> Number:
        return self.dense_layers + self.moe_layers

    @property
    def dense_params(self) -> Number:
        """Matrix parameters of a dense layer."""
        return self.attention_params + self.ff_matrices * self.d_model * self.d_ff

    @property
    def expert_params(self) -> Number:
        """All routed experts of one layer."""
        return self.n_experts * self.ff_matrices * self.d_model * self.d_expert

    @property
    def moe_fixed_params(self) -> Number:
        """Matrix parameters of a layer with experts, but for the routed experts."""
        router = self.d_model * self.n_experts
        return self.attention_params + router + self.shared_experts * self.ff_matrices * self.d_model * self.d_expert

    @property
    def table_params(self) -> Number:
        """The embedding, and the output projection if it is another."""
        return self.vocab_size * self.d_model * (2 - self.tied)

    @property
    def params(self) -> Number:
        layers = self.dense_layers * self.dense_params + self.moe_layers * (self.moe_fixed_params + self.expert_params)
        return layers + self.table_params + self.other_params

    @property
    def active_matmul_params(self) -> Number:
        """Matrix parameters that a token meets, the output projection included."""
        visited = self.experts_per_token * self.ff_matrices * self.d_model * self.d_expert
        layers = self.dense_layers * self.dense_params + self.moe_layers * (self.moe_fixed_params + visited)
        return self.layer_share * layers + self.head_share * self.vocab_size * self.d_model

    @property
    def attention_flops_per_token(self) -> Number:
        """Products with keys and values, forward and backward."""
        return 6 * self.layer_share * self.n_layers * self.n_heads * (self.d_key + self.d_value) * self.seen

    @property
    def flops_per_token(self) -> Number:
        """Model FLOPs, by the convention of `qianyi.config.counts.flops_per_token`."""
        return 6 * self.active_matmul_params + self.attention_flops_per_token


@dataclass(frozen=True, kw_only=True)
class Layout(Numbers):
    """How the work is divided."""

    seq_len: Number
    batch_size: Number
    """Sequences per step."""
    microbatch: Number
    """Sequences of one microbatch that a data-parallel rank sees; may be a fraction, when a sequence is split."""
    data: Number
    """Data-parallel ranks, all axes over which sequences are split together."""
    shard: Number
    """Of these, times context: how many share one copy of the sharded state."""
    expert_shard: Number
    """The same of routed experts."""
    tensor: Number
    context: Number
    expert: Number
    """Ranks over which experts are spread: a part of `data`."""
    stage: Number
    chunks: Number
    zero: Number
    """0 nothing is sharded over `shard`; 1 optimizer state; 2 also gradients; 3 also parameters."""
    gather_each: Number
    """1: sharded weights are gathered (and gradients scattered) for each microbatch, 0: once per step."""

    @property
    def n_chips(self) -> Number:
        return self.data * self.tensor * self.context * self.stage

    @property
    def microbatches(self) -> Number:
        return self.batch_size / (self.data * self.microbatch)

    @property
    def micro_tokens(self) -> Number:
        """Tokens of one microbatch on a chip, before tensor parallelism divides anything."""
        return self.microbatch * self.seq_len / self.context


@dataclass(frozen=True, kw_only=True)
class Method(Numbers):
    """How the software does it: what a published run's stack, or a recipe, decides."""

    sequence_parallel: Number
    """Between matrix products the residual stream is split over the tensor axis (Korthikanti et al. 2022)."""
    flash: Number
    """Attention without materialized scores (Dao et al. 2022)."""
    dropout: Number
    recompute: Number
    """Share of a layer's forward matrix products that runs again in the backward pass."""
    recompute_attention: Number
    """The same of attention's scores."""
    keep_products: Number
    """Share of products' results that is kept for the backward pass."""
    keep_elementwise: Number
    """The same of norms and activation functions."""
    offload: Number
    """Share of what is kept that lies in the host's memory."""
    stage_remat: Number
    """1: a pipeline keeps only the inputs of its stages, and runs a stage forward again before it goes backward."""
    adds_gradients: Number
    """1: a microbatch's gradients are whole before they are added to those before; 0: they are added one by one."""
    shares_tables: Number
    """1: every stage of a pipeline holds the embedding and the output projection."""
    balances: Number
    """1: layers are given to stages so that the output projection counts as the layers that it costs."""
    loss_tokens: Number
    """Tokens whose logits exist at one time."""
    stored_bytes: Number
    """Of a parameter as it is stored."""
    weight_bytes: Number
    """Of a parameter as it is used; of an activation too."""
    gather_bytes: Number
    """Of a parameter as it travels."""
    gradient_bytes: Number
    """Of a gradient as it is accumulated."""
    reduce_bytes: Number
    """Of a gradient as it travels."""
    optimizer_bytes: Number
    """State beside weights and gradients, per parameter: master copy and moments."""
    eight_bit: Number
    """1: linear layers multiply in 8 bits (or 4)."""


@dataclass(frozen=True, kw_only=True)
class Machine(Numbers):
    """A chip and its networks; dimensions of a torus that are not there are 1."""

    peak_flops: Number
    """Of linear layers, at their precision."""
    peak_bf16_flops: Number
    cores: Number
    hbm_bytes_per_second: Number
    switched: Number
    """1: a switch (or mesh) joins a domain; 0: a torus."""
    domain: Number
    """Chips of a domain."""
    near_bytes_per_second: Number
    """Switch: of a chip, one direction; torus: of one link, one direction."""
    far_bytes_per_second: Number
    """Between domains, per chip, one direction."""
    torus_a: Number
    torus_b: Number
    torus_c: Number
    wrap_a: Number
    wrap_b: Number
    wrap_c: Number


@dataclass(frozen=True, kw_only=True)
class Case:
    """All of it."""

    model: Model
    layout: Layout
    method: Method
    machine: Machine

    @classmethod
    def stack(cls, cases: Sequence[Self]) -> Self:
        return cls(
            model=Model.stack([c.model for c in cases]),
            layout=Layout.stack([c.layout for c in cases]),
            method=Method.stack([c.method for c in cases]),
            machine=Machine.stack([c.machine for c in cases]),
        )

    def take(self, index: Any) -> Self:
        return type(self)(
            model=self.model.take(index),
            layout=self.layout.take(index),
            method=self.method.take(index),
            machine=self.machine.take(index),
        )
