"""The gradient noise scale: about how large a batch is worth its sequences (McCandlish et al. 2018, appendix A.1).

With G the gradient and S the trace of the covariance of a sequence's gradient, a batch of B sequences has a squared gradient norm of
|G|^2 + S / B on average. Two sizes, a microbatch and the batch, give both; the noise scale ("B_simple") is S / |G|^2.
"""

DECAY = 0.99
"""Of the averages over steps, per step."""


class NoiseScale:
    """Averages the two terms over steps, each for itself: their ratio in one step is biased and mostly noise."""

    def __init__(self) -> None:
        self._noise = self._signal = 0.0

    def add(self, norm: float, microbatch_norm: float, batch_size: int, microbatch_size: int) -> float | None:
        """The noise scale after one more step, in sequences; None while an average is not positive.

        Args:
            norm: L2 norm of the gradient of the batch.
            microbatch_norm: root mean square of those of its microbatches.
            batch_size: in sequences.
            microbatch_size: in sequences, of one microbatch over all devices.
        """
        large, small = norm**2, microbatch_norm**2
        noise = (small - large) / (1 / microbatch_size - 1 / batch_size)
        signal = (batch_size * large - microbatch_size * small) / (batch_size - microbatch_size)
        # Both averages begin at zero: the weight that is missing at first cancels in their ratio.
        self._noise = DECAY * self._noise + (1 - DECAY) * noise
        self._signal = DECAY * self._signal + (1 - DECAY) * signal
        return self._noise / self._signal if min(self._noise, self._signal) > 0 else None
