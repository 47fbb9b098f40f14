"""Published runs as cases: `data/published_runs.csv` and tables of the same columns.

What a row does not say is taken from its stack (`data/stacks.yaml`) and from the rules below, which hold for all rows alike.
"""

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path

from pydantic import ValidationError

from qianyi.config.counts import parameter_count
from qianyi.config.model import AttentionConfig, LatentConfig, ModelConfig, MoEConfig
from qianyi.errors import ConfigError, DataError
from qianyi.plan.build import machine_numbers, model_numbers, remat_numbers
from qianyi.plan.case import Case, Layout, Method
from qianyi.plan.chips import GIGA, Chip, chip
from qianyi.plan.cluster import Cluster, make_cluster, torus_shape
from qianyi.plan.constants import group_of
from qianyi.plan.stack import Stack, stack_of_run

CHIPS = {"A100-40": "a100-40", "A100-80": "a100", "V100-32": "v100", "MI250X-GCD": "mi250x-gcd"}
"""Names of chips in the table that are not known as they stand."""
Row = Mapping[str, str]
SINKS = "GPT-OSS"
"""Models whose softmax has a learned sink, for which the runs' fused kernels were not made: their times are those of unfused attention."""


class CannotPredictError(Exception):
    """What a row lacks."""


@dataclass(frozen=True)
class Published:
    """A row that can be predicted."""

    row: Row
    case: Case
    stack: Stack
    cluster: Cluster
    precision: str

    @property
    def group(self) -> str:
        return group_of(self.stack, self.cluster.chip, self.precision)

    @property
    def seconds(self) -> float | None:
        """Published time of a step, or what follows from published tokens per second."""
        row = self.row
        if row.get("published_step_time_s"):
            return float(row["published_step_time_s"])
        rate = row.get("published_tokens_per_s_per_chip") or row.get("derived_tokens_per_s_per_chip")
        if not rate:
            return None
        layout = self.case.layout
        return layout.batch_size * layout.seq_len / (self.cluster.n_chips * float(rate))


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a table.

    Raises:
        DataError: unreadable, or columns are missing.
    """
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), set(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: {error}") from None
    missing = [c for c in ("layers", "d_model", "heads", "seq_len", "chip", "chips") if c not in columns]
    if missing:
        raise DataError(f"{path}: columns are missing: {', '.join(missing)}; expected those of published_runs.csv")
    return rows


@cache
def published_rows() -> list[dict[str, str]]:
    """The project's own table."""
    text = (files("qianyi.plan.data") / "published_runs.csv").read_text()
    return list(csv.DictReader(text.splitlines()))


def published(row: Row) -> Published:
    """A row as a case.

    Raises:
        CannotPredictError: with what is missing.
    """
    try:
        return _published(row)
    except ValidationError as error:
        raise CannotPredictError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
    except ConfigError as error:
        raise CannotPredictError(str(error)) from None


def _published(row: Row) -> Published:
    model = _model(row)
    stack = stack_of_run(row)
    precision = row.get("precision") or "bf16"
    n_chips = round(_need(row, "chips"))
    layout = _layout(row, stack, n_chips)
    of = chip(_chip_name(row))
    if stack.host_gbps:
        of = replace(of, host_bytes_per_second=stack.host_gbps * GIGA)
    cluster = _cluster(of, n_chips, row)
    machine = machine_numbers(cluster, precision)
    case = Case(
        model=model_numbers(model, round(layout.seq_len)),
        layout=layout,
        method=_method(row, stack, model, precision),
        machine=machine,
    )
    return Published(row, case, stack, cluster, precision)


def _chip_name(row: Row) -> str:
    if row["chip"].startswith("H100") and "500W" in row.get("notes", ""):
        return "h100-96gb-500w"
    return CHIPS.get(row["chip"], row["chip"])


def _number(row: Row, key: str) -> float | None:
    text = (row.get(key) or "").strip()
    try:
        return float(text) if text else None
    except ValueError:
        raise CannotPredictError(f"{key}: expected a number, found `{text}`") from None


def _need(row: Row, key: str) -> float:
    value = _number(row, key)
    if value is None or value <= 0:
        raise CannotPredictError(f"{key} is not given")
    return value


def _count(row: Row, key: str, default: float = 1.0) -> float:
    return _number(row, key) or default


def _model(row: Row) -> ModelConfig:
    d_model, heads, layers = (round(_need(row, key)) for key in ("d_model", "heads", "layers"))
    if row.get("family") == "t5":
        raise CannotPredictError("an encoder-decoder: the length of targets is not given")
    gated = row.get("gated_mlp") == "1"
    experts = round(_count(row, "n_experts", 0))
    name = row.get("model", "")
    latent = LatentConfig(kv_rank=512, query_rank=1536, rope_dim=64) if name.startswith("DeepSeek-V3") else LatentConfig()
    gemma = name.startswith(("Gemma3", "Gemma4"))
    attention = AttentionConfig(latent=latent, window=1024 if gemma else None, global_every=6 if gemma else 0)
    if name.startswith("GPT-OSS"):
        attention = AttentionConfig(window=128, global_every=2)
    moe = MoEConfig()
    if experts:
        maverick = name.startswith("Llama4-Maverick")
        moe = MoEConfig(
            n_experts=experts,
            experts_per_token=round(_count(row, "top_k")),
            d_ff=round(_count(row, "moe_d_ff", _need(row, "d_ff"))),
            n_shared=1 if name.startswith(("DeepSeek", "Llama4")) else 0,
            dense_layers=layers // 2 if maverick else 3 if name.startswith("DeepSeek-V3") else 0,
        )
    head_dim = _number(row, "head_dim") or (128 if latent.kv_rank else d_model // heads)
    found = ModelConfig(
        vocab_size=round(_count(row, "vocab", 32000)),
        n_layers=layers,
        d_model=d_model,
        n_heads=heads,
        n_kv_heads=round(_count(row, "kv_heads", heads)),
        head_dim=2 * round(head_dim / 2),
        d_ff=round(_need(row, "d_ff")),
        mlp="swiglu" if gated else "gelu",
        moe=moe,
        attention=attention,
        position="rope",
        tied_embeddings=True,
        parallel=row.get("family") == "palm",
    )
    return found.model_copy(update={"tied_embeddings": _tied(found, _number(row, "params_b"))})


def _tied(tied: ModelConfig, params_b: float | None) -> bool:
    """Whether the stated number of parameters counts one table or two."""
    table = tied.vocab_size * tied.d_model
    return params_b is None or abs(parameter_count(tied) - params_b * 1e9) <= abs(parameter_count(tied) + table - params_b * 1e9)


def _fsdp(row: Row) -> float | None:
    """Shards of FSDP: 0 where it is FSDP over all ranks, None where it is not."""
    text = row.get("fsdp_or_zero_stage") or ""
    if text.startswith("fsdp="):
        return _number({"fsdp_or_zero_stage": text.removeprefix("fsdp=")}, "fsdp_or_zero_stage")
    return 0.0 if "fsdp" in text or text.startswith("3") else None


def _layout(row: Row, stack: Stack, n_chips: int) -> Layout:
    tensor, stage, context = (_count(row, key) for key in ("tp", "pp", "cp"))
    data = n_chips / (tensor * stage * context)
    batch = _number(row, "global_batch_sequences")
    micro = _number(row, "micro_batch")
    if batch is None:
        # Throughput without a batch: one microbatch per rank, or enough to fill a pipeline as published runs do.
        micro = micro or 1.0
        batch = data * micro * (8 * stage if stage > 1 else 1)
    share = batch / data
    usual = share / stage if stack.fills_once else 1.0
    micro = min(micro or (usual if stage > 1 else 2.0), share)
    fsdp = _fsdp(row)
    if stage == 1 and fsdp is not None and not row.get("micro_batch"):
        micro = share
    if row["chip"].startswith("TPU"):
        micro = share  # of a chip, where the table counts JAX devices
    over = fsdp * context if fsdp else data * context
    said = (row.get("fsdp_or_zero_stage") or str(stack.zero))[0]
    if fsdp is None and not said.isdigit():
        raise CannotPredictError(f"fsdp_or_zero_stage: expected 0 to 3 or fsdp=N, found `{row['fsdp_or_zero_stage']}`")
    zero = 3 if fsdp is not None else int(said)
    return Layout(
        seq_len=_need(row, "seq_len"),
        batch_size=batch,
        microbatch=micro,
        data=data,
        shard=min(over, data * context),
        expert_shard=max(1.0, min(over, data * context) / (_count(row, "ep") if row.get("n_experts") else 1.0)),
        tensor=tensor,
        context=context,
        expert=min(_count(row, "ep"), data * tensor) if row.get("n_experts") else 1.0,
        stage=stage,
        chunks=_chunks(row, stack, stage),
        zero=zero,
        # FSDP under a pipeline keeps weights gathered, and gradients whole, until the last microbatch (torch.distributed.pipelining).
        gather_each=1.0 if zero >= 3 and stage == 1 else 0.0,
    )


def _chunks(row: Row, stack: Stack, stage: float) -> float:
    if stage == 1 or row.get("vpp") or not stack.interleaves:
        return _count(row, "vpp") if stage > 1 else 1.0
    layers = _need(row, "layers") / stage
    return max((v for v in range(1, int(layers) + 1) if layers % v == 0 and layers / v >= 2), default=1)


def _cluster(of: Chip, n_chips: int, row: Row) -> Cluster:
    if not of.torus_axes:
        per_host = min(of.domain_chips, n_chips)
        return make_cluster(
            of, f"{max(1, math.ceil(n_chips / per_host))}x{per_host}" if n_chips % per_host == 0 else str(n_chips)
        )
    slices = round(_count(row, "dp")) if (row.get("fsdp_or_zero_stage") or "").startswith("fsdp=") else 1
    if n_chips % slices:
        slices = 1
    per_slice = n_chips // slices
    if per_slice > of.domain_chips:
        slices = math.ceil(n_chips / of.domain_chips)
        per_slice = n_chips // slices
    return make_cluster(of, "x".join(map(str, torus_shape(of, per_slice))) + (f"*{slices}" if slices > 1 else ""))


def _method(row: Row, stack: Stack, model: ModelConfig, precision: str) -> Method:
    remat = row.get("recompute") or stack.remat
    offload = 1.0 if "offload" in remat else 0.0
    policy = remat_numbers(remat, model, skips_last=bool(stack.skips_last))
    return Method(
        sequence_parallel=stack.sequence_parallel,
        flash=0 if row.get("model", "").startswith(SINKS) else stack.flash,
        dropout=stack.dropout,
        recompute=policy.products,
        recompute_attention=policy.attention,
        keep_products=policy.keeps_products,
        keep_elementwise=policy.keeps_elementwise,
        offload=offload,
        stage_remat=0,
        adds_gradients=0,
        shares_tables=0,
        balances=stack.balances,
        loss_tokens=math.inf,
        stored_bytes=4 if _fsdp(row) is not None else 2,
        weight_bytes=2,
        gather_bytes=1 if stack.gathers_8_bits and precision == "fp8" else 2,
        gradient_bytes=2 if precision == "fp16" else stack.gradient_bytes,
        reduce_bytes=2 if precision == "fp16" else stack.reduce_bytes,
        optimizer_bytes=8 if _fsdp(row) is not None else stack.optimizer_bytes,
        eight_bit=0 if precision in {"bf16", "fp16"} else 1,
    )
