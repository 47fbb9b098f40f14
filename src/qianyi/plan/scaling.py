"""Published scaling laws: what loss a model of so many parameters reaches after so many tokens, and how to divide a budget of FLOPs.

Loss is in nats per token of the text and tokenizer that a law was fitted on, so losses of two laws differ by more than the laws do: read
differences within one law. Every answer says how far it lies beyond the runs that the law was fitted on. All budgets count 6 FLOPs per
parameter and token (Kaplan et al. 2020, section 2.1). All laws are of dense decoders that predict every next token, with a learning rate
that has decayed when the last token is seen.
"""

import math
from dataclasses import dataclass

PF_DAY = 8.64e19
"""FLOPs of a petaflop/s-day, the unit of Kaplan et al. 2020."""

Range = tuple[float, float]


@dataclass(frozen=True)
class Allocation:
    """Parameters and tokens that a law finds best for a budget."""

    law: str
    params: float
    tokens: float
    extrapolation: float
    """How many times beyond the fitted runs it lies; 1: within them."""


@dataclass(frozen=True)
class Forecast:
    """Loss that a law expects."""

    law: str
    loss: float
    """Nats per token."""
    extrapolation: float
    """How many times beyond the fitted runs it lies; 1: within them."""
    source: str


@dataclass(frozen=True, kw_only=True)
class Law:
    """A law of the loss and the runs that it was fitted on."""

    name: str
    source: str
    fitted_params: Range
    fitted_tokens: Range

    def extrapolation(self, params: float, tokens: float) -> float:
        """How many times beyond the fitted runs; 1: within them."""
        return max(beyond(params, self.fitted_params), beyond(tokens, self.fitted_tokens))


@dataclass(frozen=True, kw_only=True)
class AdditiveLaw(Law):
    """loss = floor + params_scale / params ** params_power + tokens_scale / tokens ** tokens_power, of all parameters."""

    floor: float
    """Nats per token that no model and no data take away."""
    params_scale: float
    params_power: float
    tokens_scale: float
    tokens_power: float

    def loss(self, params: float, tokens: float) -> float:
        """Nats per token."""
        return self.floor + self.params_scale / params**self.params_power + self.tokens_scale / tokens**self.tokens_power

    def optimum(self, flops: float) -> Allocation:
        """The least loss for 6 x params x tokens = flops, in closed form (Hoffmann et al. 2022, equation 4)."""
        both = self.params_power + self.tokens_power
        ratio = (self.params_power * self.params_scale / (self.tokens_power * self.tokens_scale)) ** (1 / both)
        params = ratio * (flops / 6) ** (self.tokens_power / both)
        tokens = flops / (6 * params)
        return Allocation(self.name, params, tokens, self.extrapolation(params, tokens))


@dataclass(frozen=True, kw_only=True)
class KaplanLaw(Law):
    """loss = ((params_scale / params) ** (params_power / tokens_power) + tokens_scale / tokens) ** tokens_power, without embeddings.

    The optimum is the law's own power law of the budget (table 6), for batches far below the critical one; its tokens are what the
    budget leaves. Hoffmann et al. 2022 found that it gives too much to parameters, because its learning rates did not decay in time.
    """

    params_scale: float
    params_power: float
    tokens_scale: float
    tokens_power: float
    optimum_params: float
    """Parameters that are best for one PF-day."""
    optimum_power: float

    def loss(self, params: float, tokens: float) -> float:
        """Nats per token; parameters without those of embeddings."""
        size = (self.params_scale / params) ** (self.params_power / self.tokens_power)
        return (size + self.tokens_scale / tokens) ** self.tokens_power

    def optimum(self, flops: float) -> Allocation:
        """Parameters without those of embeddings."""
        params = self.optimum_params * (flops / PF_DAY) ** self.optimum_power
        tokens = flops / (6 * params)
        return Allocation(self.name, params, tokens, self.extrapolation(params, tokens))


@dataclass(frozen=True, kw_only=True)
class TokensLaw:
    """tokens = scale x flops ** power: where the least loss lay among models trained with equal FLOPs. It says nothing of the loss."""

    name: str
    source: str
    scale: float
    power: float
    fitted_flops: Range

    def optimum(self, flops: float) -> Allocation:
        """Parameters are what the budget leaves: flops / (6 x tokens)."""
        tokens = self.scale * flops**self.power
        return Allocation(self.name, flops / (6 * tokens), tokens, beyond(flops, self.fitted_flops))


HOFFMANN = AdditiveLaw(
    name="Hoffmann et al. 2022",
    source="Training Compute-Optimal Large Language Models, approach 3 (constants as in the paper's source, not rounded)",
    floor=1.6934,
    params_scale=406.4,
    params_power=0.3392,
    tokens_scale=410.7,
    tokens_power=0.2849,
    fitted_params=(70e6, 16e9),
    fitted_tokens=(5e9, 500e9),
)
BESIROGLU = AdditiveLaw(
    name="Besiroglu et al. 2024",
    source="Chinchilla Scaling: A Replication Attempt (arXiv 2404.10102): the same runs, read from the paper's plots and fitted again",
    floor=1.8172,
    params_scale=482.01,
    params_power=0.3478,
    tokens_scale=2085.43,
    tokens_power=0.3658,
    fitted_params=(70e6, 16e9),
    fitted_tokens=(5e9, 500e9),
)
KAPLAN = KaplanLaw(
    name="Kaplan et al. 2020",
    source="Scaling Laws for Neural Language Models, equation 1.5 with table 2, and table 6",
    params_scale=6.4e13,
    params_power=0.076,
    tokens_scale=1.8e13,
    tokens_power=0.103,
    optimum_params=1.3e9,
    optimum_power=0.73,
    fitted_params=(768, 1.5e9),
    fitted_tokens=(22e6, 23e9),
)
LLAMA3 = TokensLaw(
    name="Llama 3 (2024)",
    source="The Llama 3 Herd of Models, section 3.2.1 and figure 3",
    scale=0.299,
    power=0.537,
    fitted_flops=(6e18, 1e22),
)
DEEPSEEK = TokensLaw(
    name="DeepSeek LLM (2024)",
    source="DeepSeek LLM (arXiv 2401.02954), equation 4; its FLOPs count attention and leave out the vocabulary",
    scale=5.8316,
    power=0.4757,
    fitted_flops=(1e17, 3e20),
)
ADDITIVE_LAWS = (HOFFMANN, BESIROGLU)
"""Of the same runs, so that their losses can be compared."""
LAWS = (*ADDITIVE_LAWS, KAPLAN)
"""Laws of the loss."""
ALLOCATIONS = (*LAWS, LLAMA3, DEEPSEEK)
"""Laws that divide a budget."""


def expected_losses(params: float, tokens: float, *, embedding_params: float = 0.0) -> tuple[Forecast, ...]:
    """Of each of LAWS; `embedding_params` is the part of `params` that lies in embeddings, which Kaplan et al. leave out."""
    counted = [(law, params - embedding_params if law is KAPLAN else params) for law in LAWS]
    return tuple(Forecast(law.name, law.loss(size, tokens), law.extrapolation(size, tokens), law.source) for law, size in counted)


def optima(flops: float) -> tuple[Allocation, ...]:
    """The best parameters and tokens for a budget, by each of ALLOCATIONS."""
    return tuple(law.optimum(flops) for law in ALLOCATIONS)


def loss_by_compute(flops: float) -> float:
    """Nats per token that a budget reaches when it is divided best, by Kaplan et al. 2020, equation 1.3, for small batches."""
    return (3.1e8 * PF_DAY / flops) ** 0.050


def critical_batch_tokens(loss: float) -> float:
    """Tokens per step at which a run needs twice the least tokens and twice the least steps to a loss (Kaplan et al. 2020, equation 1.4).

    A batch of b times that takes 1 + b times the tokens of the smallest, and 1 + 1 / b times the steps of the largest (McCandlish et al.
    2018). The constant has one figure: B* = 2e8 tokens, exponent 1 / 0.21. The loss is in the units of KAPLAN.
    """
    return 2e8 / loss ** (1 / 0.21)


def tuned_batch_tokens(flops: float) -> float:
    """Tokens per step near which runs of a budget did best (DeepSeek LLM 2024, equation 1); fitted from 1e17 to 2e19 FLOPs."""
    return 0.2920 * flops**0.3271


def tuned_learning_rate(flops: float) -> float:
    """Peak learning rate near which runs of a budget did best (DeepSeek LLM 2024, equation 1); fitted from 1e17 to 2e19 FLOPs."""
    return 0.3118 * flops**-0.1250


def beyond(value: float, fitted: Range) -> float:
    """How many times a value lies outside a range; 1: inside."""
    low, high = fitted
    return max(1.0, value / high, low / value if value else math.inf)
