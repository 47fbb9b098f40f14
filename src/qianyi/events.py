"""What a run reports: the vocabulary shared by the training loop (which emits) and the monitor (which records).

`RUN/events.jsonl` holds one `StepEvent` per line and step, `RUN/evals.jsonl` one `EvalEvent` per validation. Other tools
read these files: their names are a contract.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StepEvent:
    """One finished optimizer step."""

    step: int
    """Optimizer steps completed, counting this one (the first is 1)."""
    tokens: int
    """Training tokens consumed since the run began."""
    loss: float
    """Mean cross-entropy per token in nats, before this step's update."""
    z_loss: float
    """The auxiliary z-loss term that was added to it."""
    balance_loss: float | None
    """The auxiliary loss that evens the load of experts, also added; None where the model has none."""
    sentence_loss: float | None
    """Mean cross-entropy of the two answers about a row's two halves, also added; None where the model has no head for it."""
    grad_norm: float
    """Global L2 norm of the gradient before clipping."""
    grad_noise_scale: float | None
    """In sequences (McCandlish et al. 2018): a batch much larger than this gains little over a smaller one. A ratio of averages over about
    a hundred steps, which begin anew when a run is continued. None without train.noise_scale, and while it cannot be told from noise."""
    learning_rate: float
    step_seconds: float
    """Wall time since the previous step finished; the first step of a process includes compilation."""
    tokens_per_second: float
    mfu: float | None
    """Model FLOP/s utilization: model FLOPs (6 per parameter and token in matmuls + causal attention at half) over the devices' peak; None
    where the peak is not known."""
    memory_bytes: int | None
    """Largest bytes in use on a device of this process; on CPU the resident set of the process."""
    time: float
    """Unix time at which the step was seen to be finished."""


@dataclass(frozen=True, kw_only=True)
class EvalEvent:
    """One validation."""

    step: int
    loss: float
    """Mean cross-entropy per token in nats."""
    perplexity: float
    accuracy: float
    """Share of scored tokens that had the highest logit."""
    bits_per_byte: float | None
    """None where not all text is scored: of masked tokens, say."""
    tokens: int
    """Tokens scored."""
    bytes: int | None
    """UTF-8 bytes of the text that they encode; None as above."""
    seconds: float
    time: float
