"""Numbers of a case from configurations: what a recipe and a cluster say."""

from typing import NamedTuple

from qianyi.config.check import ACTIVATIONS, MATMUL_ACTIVATIONS
from qianyi.config.counts import attention_matmul_params, parameter_count, seen_keys
from qianyi.config.model import ModelConfig
from qianyi.config.objective import target_length
from qianyi.config.schema import Config
from qianyi.plan.case import Case, Layout, Machine, Method, Model
from qianyi.plan.cluster import Cluster
from qianyi.plan.compute import FULL, HALF


def model_numbers(m: ModelConfig, seq_len: int, target_len: int | None = None) -> Model:
    """A model; of an encoder-decoder, decoder and encoder layers together, with attention to the encoder spread over them."""
    H, G, K, V = m.n_heads, m.kv_heads, m.d_key, m.d_head
    qkv, kv = (V * (H + 2 * G), 2 * G * V) if m.latent is None else (H * (2 * K + V), H * (K + V))
    layers = m.n_layers + m.encoder_layers
    crossing = m.n_layers / layers if m.encoder_layers else 0.0
    target_share = (target_len or seq_len) / seq_len
    moe_layers = m.n_blocks if m.mixture else 0
    numbers = Model(
        vocab_size=m.vocab_size,
        d_model=m.d_model,
        dense_layers=layers - moe_layers,
        moe_layers=moe_layers,
        n_heads=H,
        qkv_width=qkv,
        kv_width=kv,
        d_key=K,
        d_value=V,
        attention_params=attention_matmul_params(m) * (1 + crossing),
        ff_matrices=3 if m.gated else 2,
        d_ff=m.d_hidden,
        d_expert=m.d_expert if m.mixture else 0,
        n_experts=m.moe.n_experts,
        experts_per_token=m.moe.experts_per_token if m.mixture else 0,
        shared_experts=m.moe.n_shared if m.mixture else 0,
        seen=_seen(m, seq_len) * (1 + crossing),
        tied=1 if m.tied_embeddings else 0,
        layer_share=(m.encoder_layers + m.n_layers * target_share) / layers if m.encoder_layers else 1.0,
        head_share=target_share if m.encoder_layers else 1.0,
        other_params=0,
    )
    others = parameter_count(m) - numbers.params
    return Model(**{**numbers.__dict__, "other_params": others})


def _seen(m: ModelConfig, seq_len: int) -> float:
    """Keys that a query sees, on average over layers."""
    local = sum(m.local_layers) / m.n_layers
    return local * seen_keys(m, seq_len, m.attention.window) + (1 - local) * seen_keys(m, seq_len)


def machine_numbers(cluster: Cluster, precision: str) -> Machine:
    """A cluster, with the peak of a precision.

    Raises:
        ConfigError: the chip has no such units.
    """
    of = cluster.chip
    dims = sorted(cluster.domain) if of.torus_axes else []
    wraps = [w for _, w in sorted(zip(cluster.domain, cluster.wraps, strict=True))] if of.torus_axes else []
    dims, wraps = [*dims, 1, 1, 1][:3], [*wraps, False, False, False][:3]
    near = of.link_bytes_per_second * (of.links if of.network == "mesh" else 1)
    return Machine(
        peak_flops=of.peak_flops(precision),
        peak_bf16_flops=of.bf16_flops,
        cores=of.cores,
        hbm_bytes_per_second=of.hbm_bytes_per_second,
        switched=0 if of.torus_axes else 1,
        domain=cluster.domain_chips,
        near_bytes_per_second=near,
        far_bytes_per_second=cluster.far_bytes_per_second,
        torus_a=dims[0],
        torus_b=dims[1],
        torus_c=dims[2],
        wrap_a=float(wraps[0]),
        wrap_b=float(wraps[1]),
        wrap_c=float(wraps[2]),
    )


class Remat(NamedTuple):
    """What a policy runs again in the backward pass and what it keeps, as shares."""

    products: float
    """Of a layer's products, run again."""
    attention: float
    """Of attention's scores, run again."""
    keeps_products: float
    """Of products' results, kept."""
    keeps_elementwise: float
    """Of other results, kept."""


def remat_numbers(remat: str, m: ModelConfig, *, skips_last: bool) -> Remat:
    """Of a policy's name: this program's presets, and those of published runs.

    `skips_last`: recomputing a block leaves out its last product, whose result the backward pass does not need.
    """
    H, V, D = m.n_heads, m.d_head, m.d_model
    ff = D * (m.d_expert * (m.moe.experts_per_token + m.moe.n_shared) if m.mixture else m.d_hidden)
    qkv, out, down = D * V * (H + 2 * m.kv_heads), D * H * V, ff
    layer = qkv + out + (3 if m.gated else 2) * ff
    all_but_last = 1 - down / layer if skips_last else 1.0
    made = qkv + out + (3 if m.gated else 2) * ff - down + D * D
    named = {
        "full": Remat(all_but_last, 1.0, 0.0, 0.0),
        "offloads": Remat(all_but_last - qkv / layer, 0.0, qkv / made, 0.0),
        "selective(every-2nd-layer)": Remat(0.5, 0.5, 0.5, 0.5),
        "selective(op)": Remat(0.4, 0.0, 0.6, 0.0),
        "selective": Remat(0.0, 1.0, 1.0, 1.0),
        "minimal": Remat(0.0, 1.0, 1.0, 0.0),
        "save_dot_with_context_except_mlp": Remat((layer - qkv - out - down) / layer, 0.0, (qkv + out) / made, 0.0),
        "minimal_with_context": Remat(0.0, 0.0, 1.0, 0.0),
        "matmuls": Remat(0.0, 0.0, 1.0, 0.0),
    }
    offloads = remat.startswith("custom") or "offloaded" in remat
    return named.get("offloads" if offloads else remat, Remat(0.0, 0.0, 1.0, 1.0))


def optimizer_bytes(config: Config) -> float:
    """Of the state of one parameter, beside weight and gradient: float32 moments (`qianyi.train.optimizer`)."""
    o = config.optimizer
    first = 1 if o.moment_decay else 0
    moments = {
        "adamw": 2,
        "lamb": 2,
        "lion": 1,
        "lars": 1,
        "muon": 1,
        "adafactor": first + (0 if o.factored else 1),
        "sgd": first,
    }
    return FULL * moments[o.kind]


def method_numbers(config: Config) -> Method:
    """How this program trains a recipe."""
    m, layout = config.model, config.layout
    remat = remat_numbers(preset_of(m), m, skips_last=True)
    staged = layout.stage > 1
    half = m.dtype == "bfloat16"
    return Method(
        sequence_parallel=1,
        flash=1,
        dropout=0,
        # A stage of the pipeline runs forward again before it goes backward.
        recompute=remat.products + (1.0 if staged else 0.0),
        recompute_attention=remat.attention + (1.0 if staged else 0.0),
        keep_products=remat.keeps_products,
        keep_elementwise=remat.keeps_elementwise,
        offload=1.0 if m.offloaded_activations else 0.0,
        stage_remat=1,
        adds_gradients=1,
        shares_tables=1,
        balances=0,
        loss_tokens=config.train.loss_chunk_tokens,
        stored_bytes=HALF if config.train.param_dtype == "bfloat16" else FULL,
        weight_bytes=HALF if half else FULL,
        gather_bytes=HALF if half else FULL,
        gradient_bytes=FULL,
        reduce_bytes=HALF if config.train.reduce_dtype == "bfloat16" else FULL,
        optimizer_bytes=0.0 if config.train.offload == "optimizer" else optimizer_bytes(config),
        eight_bit=0 if m.matmul == "native" else 1,
    )


def preset_of(m: ModelConfig) -> str:
    """The preset that a table of activations is nearest to."""
    if isinstance(m.remat, str):
        return m.remat
    kept = {name for name, what in m.remat.items() if what != "recompute"}
    if kept >= set(ACTIVATIONS) - {"block_in"}:
        return "none"
    dense = set(MATMUL_ACTIVATIONS) - {"expert_tokens", "expert_out"}
    return "matmuls" if kept >= dense else "full"


def layout_numbers(config: Config) -> Layout:
    """A recipe's layout and batch."""
    layout, train = config.layout, config.train
    data = layout.batch_shards
    return Layout(
        seq_len=train.seq_len,
        batch_size=train.batch_size,
        microbatch=train.batch_size / (data * train.accumulation),
        data=data,
        shard=layout.data * layout.context,
        expert_shard=layout.data * layout.context,
        tensor=layout.model,
        context=layout.context,
        expert=layout.expert,
        stage=layout.stage,
        chunks=layout.chunks,
        zero=layout.zero,
        gather_each=0 if config.gathers_once and layout.zero != 2 else 1,
    )


def precision_of(config: Config) -> str:
    """The name of a recipe's precision in `Chip.peak_flops`."""
    return {"native": "bf16", "int8": "int8"}.get(config.model.matmul, "fp8")


def case_of(config: Config, cluster: Cluster) -> Case:
    """A recipe on a cluster.

    Raises:
        ConfigError: the chip has no units for the recipe's precision.
    """
    return Case(
        model=model_numbers(config.model, config.train.seq_len, target_length(config.train)),
        layout=layout_numbers(config),
        method=method_numbers(config),
        machine=machine_numbers(cluster, precision_of(config)),
    )
