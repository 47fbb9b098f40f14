"""The order of a pipeline: at which tick each stage runs which forward and backward pass.

A tick has a slot for one forward pass and, after it, one for a backward pass (`qianyi.parallel.schedule` says why). Model chunk v of
stage s is virtual stage v * stages + s.
"""

from collections.abc import Iterator

Action = tuple[int, int]
"""(microbatch, virtual stage)."""


def passes(
    kind: str, n_stages: int, n_microbatches: int, n_chunks: int, backward: bool = True
) -> tuple[dict[Action, int], dict[Action, int]]:
    """The tick of every forward and of every backward pass: each stage takes its actions in order, as soon as they can be done."""
    last = n_stages * n_chunks - 1
    f_order = [list(_order(s, n_stages, n_microbatches, n_chunks)) for s in range(n_stages)]
    b_order = [[(m, last - k) for m, k in f_order[n_stages - 1 - s]] if backward else [] for s in range(n_stages)]
    if backward:
        f_order = [[(m, k) for m, k in order if k != last] for order in f_order]
    in_flight = [_in_flight(kind, s, n_stages, n_microbatches, n_chunks) if backward else n_microbatches * n_chunks
                 for s in range(n_stages)]  # fmt: skip
    f_next, b_next = [0] * n_stages, [0] * n_stages
    done_f: dict[Action, int] = {}
    done_b: dict[Action, int] = {}
    tick = 0
    while any(f_next[s] < len(f_order[s]) or b_next[s] < len(b_order[s]) for s in range(n_stages)):
        before = len(done_f) + len(done_b)
        # GPipe: no backward pass before the last forward pass.
        held = kind == "gpipe" and any(f_next[s] < len(f_order[s]) for s in range(n_stages))
        for s in range(n_stages):
            if f_next[s] < len(f_order[s]) and f_next[s] - b_next[s] < in_flight[s]:
                m, k = f_order[s][f_next[s]]
                if k == 0 or done_f.get((m, k - 1), tick) < tick:
                    done_f[m, k] = tick
                    f_next[s] += 1
            if b_next[s] < len(b_order[s]):
                m, k = b_order[s][b_next[s]]
                ready = done_f.get((m, k - 1), tick) < tick if k == last else done_b.get((m, k + 1), tick) < tick
                if ready and not held:
                    done_b[m, k] = tick
                    b_next[s] += 1
        if len(done_f) + len(done_b) == before:
            # Microbatches that do not fill a group of n_stages can need more in flight than the closed form says.
            in_flight = [n + 1 for n in in_flight]
        else:
            tick += 1
    return done_f, done_b


def _order(stage: int, n_stages: int, n_microbatches: int, n_chunks: int) -> Iterator[Action]:
    """The forward passes of a stage: groups of n_stages microbatches, chunk after chunk."""
    for start in range(0, n_microbatches, n_stages):
        for chunk in range(n_chunks):
            for m in range(start, min(start + n_stages, n_microbatches)):
                yield m, chunk * n_stages + stage


def _in_flight(kind: str, stage: int, n_stages: int, n_microbatches: int, n_chunks: int) -> int:
    """Forward passes that a stage may be ahead of its backward passes, this one included."""
    if kind == "gpipe":
        return n_microbatches * n_chunks
    return 2 * (n_stages - 1 - stage) + (n_chunks - 1) * n_stages + 1
