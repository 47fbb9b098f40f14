"""Ctrl-C and SIGTERM ask the loop to save and stop; a second Ctrl-C stops at once."""

import os
import signal
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

import jax


class StopRequest:
    """Set by a signal; `reached(step)` is True on every process at the same step."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def reached(self, step: int) -> bool:
        if jax.process_count() > 1:
            # JAX's coordination service takes SIGTERM and agrees on a step that all processes can still reach.
            from jax.experimental import multihost_utils  # noqa: PLC0415 - imports slowly, needed by few

            if multihost_utils.reached_preemption_sync_point(step):
                self.signal = self.signal or signal.SIGTERM
                return True
            return False
        return self.signal is not None


@contextmanager
def stop_on_signals() -> Generator[StopRequest]:
    """Within this context signals become requests."""
    request = StopRequest()

    def receive(number: int, _: FrameType | None) -> None:
        request.signal = signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    numbers = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
    before = {number: signal.signal(number, receive) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
