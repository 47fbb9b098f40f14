"""The configuration of a model."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from qianyi.config.part import Count, Part, Positive


class MoEConfig(Part):
    """With experts, feed-forward layers are mixtures of them (Shazeer et al. 2017)."""

    n_experts: Count = 0
    """Experts per layer; 0: none, the feed-forward layer is dense."""
    experts_per_token: Positive = 2
    """Experts that a token visits, chosen by the router."""
    n_shared: Count = 0
    """Experts that every token visits beside those (Dai et al. 2024, DeepSeekMoE)."""
    d_ff: Positive | None = None
    """Width of an expert; null: model.d_ff."""
    dense_layers: Count = 0
    """The first so many layers have a dense feed-forward layer of width model.d_ff."""
    score: Literal["softmax", "sigmoid"] = "softmax"
    """How the router's products become weights: over all experts, or each for itself (DeepSeek-V3, section 2.1.2)."""
    normalize: bool = True
    """Weights of the chosen experts are made to sum to one."""
    scale: Annotated[float, Field(gt=0)] = 1.0
    """Factor on those weights."""
    groups: Positive = 1
    """Groups of experts; a token chooses groups_chosen of them first, by the sum of their two best."""
    groups_chosen: Positive = 1
    """Groups in which a token chooses experts."""
    capacity_factor: Annotated[float, Field(gt=0)] | None = None
    """Slots per expert and group of tokens, relative to an even spread; tokens beyond are dropped. null: dropless."""
    group_tokens: Positive = 256
    """Consecutive tokens of a sequence that share a capacity."""
    balance: Literal["loss", "bias"] = "loss"
    """Even the load by an auxiliary loss (Fedus et al. 2022), or by a bias on the choice (Wang et al. 2024; DeepSeek-V3)."""
    balance_rate: Annotated[float, Field(ge=0)] = 0.01
    """Coefficient of the auxiliary loss, or step of the bias."""

    @model_validator(mode="after")
    def _chosen(self) -> "MoEConfig":
        if self.n_experts and self.experts_per_token > self.n_experts:
            raise ValueError(f"experts_per_token {self.experts_per_token} is more than n_experts {self.n_experts}")
        if self.n_experts % self.groups or self.groups_chosen > self.groups:
            raise ValueError(
                f"n_experts {self.n_experts} do not form groups {self.groups} of which groups_chosen {self.groups_chosen} are chosen"
            )
        if self.groups > 1 and self.groups_chosen * (self.n_experts // self.groups) < self.experts_per_token:
            raise ValueError(
                f"groups_chosen {self.groups_chosen} have fewer experts than experts_per_token {self.experts_per_token}"
            )
        return self


class LatentConfig(Part):
    """Keys and values, and queries, from narrow latent vectors (multi-head latent attention: DeepSeek-V2, section 2.1)."""

    kv_rank: Count = 0
    """Width of the latent vector of keys and values; 0: there is none."""
    query_rank: Count = 0
    """Width of that of queries; 0: queries come from the residual stream."""
    rope_dim: Positive = 64
    """Width, beside head_dim, of the part of queries and keys that carries positions."""


class AttentionConfig(Part):
    """What varies in attention."""

    qk_norm: bool = False
    """Queries and keys are normalized, head by head (Dehghani et al. 2023; Qwen3)."""
    logit_cap: Annotated[float, Field(gt=0)] | None = None
    """Scores are bent to cap * tanh(score / cap) (Gemma 2)."""
    scale: Annotated[float, Field(gt=0)] | None = None
    """Factor on products of queries and keys; null: 1 / sqrt(their width)."""
    window: Positive | None = None
    """Local layers see only so many tokens, their own included; null: all layers see all."""
    global_every: Count = 0
    """With a window, layers global_every, 2 global_every ... see all (Gemma); 0: all layers are local."""
    local_rope_theta: Annotated[float, Field(gt=0)] | None = None
    """Base of the rotary frequencies in local layers; null: model.rope_theta."""
    latent: LatentConfig = LatentConfig()
    """Latent keys and values."""
    kernel: Literal["auto", "blockwise", "fused"] = "auto"
    """auto: the platform's fused kernels (TPU: splash, GPU: cuDNN) for what they can do, blocks of ordinary operations for the rest;
    blockwise: these for all; fused: the kernels, or an error that says what they cannot do."""


class RopeScalingConfig(Part):
    """Rotary frequencies stretched for sequences longer than those first trained on."""

    kind: Literal["none", "linear", "llama3"] = "none"
    """linear: positions divided by `factor` (Chen et al. 2023), in global layers; llama3: low frequencies divided, high ones kept."""
    factor: Annotated[float, Field(ge=1)] = 1.0
    """By how much."""
    low_freq_factor: Annotated[float, Field(gt=0)] = 1.0
    """llama3: frequencies with fewer turns than this in original_max_seq_len are divided."""
    high_freq_factor: Annotated[float, Field(gt=0)] = 4.0
    """llama3: those with more turns than this are kept; between, both are mixed."""
    original_max_seq_len: Positive = 8192
    """llama3: longest sequence before."""


class ModelConfig(Part):
    """A Transformer, composed of parts: each family of models is a choice of them."""

    kind: Literal["decoder", "encoder", "encoder_decoder"] = "decoder"
    """Which way it reads: left to right; both ways (BERT); a source both ways and then a target left to right (T5)."""
    vocab_size: Positive = 50257
    """Rows of the embedding table; at least the tokenizer's vocabulary."""
    n_layers: Positive = 12
    """Transformer blocks; of an encoder-decoder, those of the decoder."""
    n_encoder_layers: Positive | None = None
    """Blocks of the encoder of an encoder-decoder; null: n_layers."""
    d_model: Positive = 768
    """Width of the residual stream."""
    n_heads: Positive = 12
    """Query heads."""
    n_kv_heads: Positive | None = None
    """Key and value heads (grouped-query attention); null: as many as query heads."""
    head_dim: Positive | None = None
    """Width of a head; null: d_model / n_heads."""
    d_ff: Positive | None = None
    """Width of the feed-forward layer; null: 4 * d_model."""
    max_seq_len: Positive = 1024
    """Longest sequence; with learned positions, the rows of the position table."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalization."""
    norm_at: Literal["pre", "post", "sandwich", "deepnorm"] = "pre"
    """Where: before each sublayer and at the end; after each is added (Vaswani et al. 2017, BERT); before and after each, and at the end
    (Gemma); after each is added to a scaled residual stream (DeepNorm, GLM-130B)."""
    parallel: bool = False
    """Attention and feed-forward layer read the same normalized input, and are added together (PaLM)."""
    norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    """Added to the variance before the square root."""
    mlp: Literal["gelu", "gelu_erf", "relu", "swiglu", "geglu"] = "gelu"
    """Feed-forward layer: two matrices with GELU (tanh form; gelu_erf: exact) or ReLU between, or three with a gate of SiLU or GELU."""
    moe: MoEConfig = MoEConfig()
    """Mixture of experts in place of the feed-forward layer."""
    attention: AttentionConfig = AttentionConfig()
    """What varies in attention."""
    position: Literal["learned", "sinusoidal", "rope", "alibi", "relative"] = "learned"
    """Learned or sinusoidal positions added to the embedding; rotary positions in attention; scores that fall with distance (ALiBi);
    learned biases by distance (T5)."""
    rope_theta: Annotated[float, Field(gt=0)] = 10_000.0
    """Base of the rotary frequencies."""
    rope_scaling: RopeScalingConfig = RopeScalingConfig()
    """How they are stretched."""
    segments: Count = 0
    """Kinds of segments with a learned vector each (BERT: 2)."""
    bias: bool = True
    """Biases in linear layers and layer norms."""
    embedding_norm: bool = False
    """The embedding is normalized (BERT, BLOOM)."""
    scale_embeddings: bool = False
    """Embeddings of tokens are multiplied by sqrt(d_model) (Vaswani et al. 2017, Gemma)."""
    tied_embeddings: bool = True
    """The output projection is the transposed embedding table."""
    scale_logits: bool = False
    """Logits are divided by sqrt(d_model) (T5, PaLM)."""
    logit_cap: Annotated[float, Field(gt=0)] | None = None
    """Logits are bent to cap * tanh(logit / cap) (Gemma 2)."""
    mlm_head: bool = True
    """Of an encoder: a layer and biases before logits (BERT); false: it has no logits, only hidden states."""
    sentence_head: bool = False
    """Of an encoder: two logits from the first token, for pairs of sentences (BERT)."""
    init: Literal["scaled", "normal", "fan_in"] = "scaled"
    """Initial matrices are normal. scaled: of deviation init_std, projections into the residual stream init_std / sqrt(2 n_layers) (GPT-2);
    normal: init_std all (BERT); fan_in: 1 / sqrt(number of inputs), embeddings 1 (T5, PaLM)."""
    init_std: Annotated[float, Field(gt=0)] = 0.02
    """Standard deviation of initial matrices."""
    mup_base_width: Positive | None = None
    """The d_model for which hyperparameters were found: they are carried over to this width by maximal update parametrization (Yang et al.
    2022), whose rules are in `qianyi.model.width`; null: the same at every width."""
    mup_base_head_dim: Positive | None = None
    """The head width there; null: as here."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of matmul inputs and activations; optimizer state and reductions are float32."""
    matmul: Literal["native", "fp8", "fp8_delayed", "int8"] = "native"
    """Products of linear layers and experts: in the type `dtype`, or in 8 bits: `fp8` and `int8` measure their operands, `fp8_delayed`
    takes scales from past steps (see `qianyi.ops.matmul`). Attention and the output projection stay in `dtype`, routers in float32."""
    remat: Literal["matmuls", "full", "none"] | dict[str, Literal["keep", "recompute", "offload"]] = "matmuls"
    """Activations kept for the backward pass: `matmuls` keeps what matmuls and attention made and recomputes the cheap rest, `full`
    recomputes whole blocks, `none` keeps all that have a name. Or a table of names (`qianyi.config.check.ACTIVATIONS`): keep, recompute
    (as what is not named), or offload: keep in the host's memory."""

    @property
    def offloaded_activations(self) -> tuple[str, ...]:
        return () if isinstance(self.remat, str) else tuple(name for name, what in self.remat.items() if what == "offload")

    @property
    def mixture(self) -> MoEConfig | None:
        return self.moe if self.moe.n_experts else None

    @property
    def latent(self) -> LatentConfig | None:
        return self.attention.latent if self.attention.latent.kv_rank else None

    @property
    def dense(self) -> "ModelConfig":
        """Without experts."""
        return self.model_copy(update={"moe": MoEConfig()})

    @property
    def gated(self) -> bool:
        """The feed-forward layer has a gate."""
        return self.mlp in {"swiglu", "geglu"}

    @property
    def n_blocks(self) -> int:
        """Layers of the stack that pipeline stages share: all but the first dense ones of a model with experts."""
        return self.n_layers - (self.moe.dense_layers if self.moe.n_experts else 0)

    @property
    def encoder_layers(self) -> int:
        """Layers of the encoder beside the decoder's."""
        return (self.n_encoder_layers or self.n_layers) if self.kind == "encoder_decoder" else 0

    @property
    def local_layers(self) -> tuple[bool, ...]:
        """Which layers see only a window."""
        a = self.attention
        return tuple(
            a.window is not None and not (a.global_every and (i + 1) % a.global_every == 0) for i in range(self.n_layers)
        )

    @property
    def final_norm(self) -> bool:
        """A norm of its own follows the last block."""
        return self.norm_at in {"pre", "sandwich"}

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def d_head(self) -> int:
        return self.head_dim or self.d_model // self.n_heads

    @property
    def d_key(self) -> int:
        """Width of queries and keys."""
        return self.d_head + (self.attention.latent.rope_dim if self.latent else 0)

    @property
    def d_hidden(self) -> int:
        return self.d_ff or 4 * self.d_model

    @property
    def d_expert(self) -> int:
        return self.moe.d_ff or self.d_hidden

    @model_validator(mode="after")
    def _shapes(self) -> "ModelConfig":
        if self.head_dim is None and self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}; set head_dim")
        if self.n_heads % self.kv_heads:
            raise ValueError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.kv_heads}")
        self._check_width()
        if self.position == "rope" and (self.attention.latent.rope_dim if self.latent else self.d_head) % 2:
            raise ValueError(f"rotary positions need an even head_dim, not {self.d_head}")
        if self.moe.dense_layers >= self.n_layers:
            raise ValueError(f"moe.dense_layers {self.moe.dense_layers} leaves none of n_layers {self.n_layers} for experts")
        return self

    @property
    def outside_mup(self) -> list[str]:
        """Parts with a dependence on the width of their own, for which maximal update parametrization has no rule here."""
        own = {
            "init fan_in": self.init == "fan_in",
            "scale_embeddings": self.scale_embeddings,
            "scale_logits": self.scale_logits,
            "sentence_head": self.sentence_head,
            "attention.latent": self.latent is not None,
        }
        return [name for name, there in own.items() if there]

    def _check_width(self) -> None:
        if self.mup_base_head_dim and not self.mup_base_width:
            raise ValueError(f"mup_base_head_dim {self.mup_base_head_dim} changes nothing without mup_base_width")
        if self.mup_base_width and self.outside_mup:
            names = ", ".join(self.outside_mup)
            raise ValueError(
                f"mup_base_width {self.mup_base_width} does not go with {names}: no rule says how that grows with the width"
            )
