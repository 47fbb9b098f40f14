"""Schedule tables: every pass once, in a possible order, with buffers that hold what is read."""

from itertools import product

import numpy as np
import pytest

from qianyi.parallel.schedule import Schedule, make_schedule

KINDS = [("gpipe", 1), ("1f1b", 1), ("1f1b", 2), ("1f1b", 3)]
SIZES = [(2, 2), (2, 4), (2, 7), (4, 4), (4, 7), (4, 8), (8, 32)]


@pytest.mark.parametrize("backward", [True, False])
@pytest.mark.parametrize(("kind", "chunks"), KINDS)
@pytest.mark.parametrize(("stages", "microbatches"), SIZES)
def test_table_computes_every_microbatch(kind: str, chunks: int, stages: int, microbatches: int, backward: bool) -> None:
    """The table is executed with names in place of arrays, by the rules of `qianyi.parallel.pipeline`: what is read is what is meant."""
    schedule = make_schedule(kind, stages, microbatches, chunks, backward=backward)
    passes = execute(schedule)
    last = stages * chunks - 1
    everything = set(product(range(microbatches), range(last + 1)))
    assert sorted(passes["b"]) == sorted(everything if backward else [])
    # With backward passes, the last virtual stage computes its forward pass in them.
    assert sorted(passes["f"]) == sorted((m, k) for m, k in everything if not backward or k != last)


def execute(schedule: Schedule) -> dict[str, list[tuple[int, int]]]:
    ticks, n = schedule.ticks, schedule.n_stages
    inputs = [["nothing"] * (schedule.input_slots + 1) for _ in range(n)]
    gradients = [["nothing"] * (schedule.gradient_slots + 1) for _ in range(n)]
    g_sent = ["nothing"] * n
    done: dict[str, list[tuple[int, int]]] = {"f": [], "b": []}
    for t in range(len(ticks.f_on)):
        for s in range(n):
            gradients[s][ticks.g_arrives[t, s]] = g_sent[(s + 1) % n]
        y, g_sent = ["nothing"] * n, ["nothing"] * n
        for s in range(n):
            for kind in "fb":
                row = {name.removeprefix(f"{kind}_"): int(getattr(ticks, name)[t, s]) for name in ticks._fields}
                if not row["on"]:
                    continue
                m, k = row["microbatch"], row["chunk"] * n + s
                assert row["first"] == (k == 0)
                assert row["last"] == (k == n * schedule.n_chunks - 1)
                if not row["first"]:
                    assert inputs[s][row["input"]] == f"x of {m} for {k}"
                if kind == "f":
                    y[s] = f"x of {m} for {k + 1}"
                else:
                    if not row["last"]:
                        assert gradients[s][row["gradient"]] == f"g of {m} for {k}"
                    g_sent[s] = f"g of {m} for {k - 1}"
                done[kind].append((m, k))
        for s in range(n):
            inputs[s][ticks.y_arrives[t, s]] = y[(s - 1) % n]
    return done


@pytest.mark.parametrize(("stages", "microbatches"), [(2, 8), (4, 8), (4, 32), (8, 64)])
def test_1f1b_reaches_its_ideal_time_and_a_flat_memory(stages: int, microbatches: int) -> None:
    """Ideal: every stage works on every microbatch, and waits while the first fills and the last drains the pipeline; one forward less,
    because the last stage's is part of its backward pass."""
    one = make_schedule("1f1b", stages, microbatches)
    assert one.makespan() == 4 * (microbatches + stages - 1) - 2
    assert one.input_slots <= max(2 * stages - 3, 1)
    assert make_schedule("1f1b", stages, 4 * microbatches).input_slots == one.input_slots
    assert make_schedule("gpipe", stages, microbatches).input_slots == microbatches
    assert make_schedule("1f1b", stages, microbatches, 2).bubble() < one.bubble()


def test_idle_share_is_that_of_the_literature() -> None:
    """Narayanan et al. 2021, section 2.2.1: (p - 1) / (m + p - 1); their table has a forward slot on the last stage, ours has none."""
    schedule = make_schedule("1f1b", 4, 32)
    np.testing.assert_allclose(schedule.bubble(), 1 - (4 * 32 - 32 / 4) / (4 * 35 - 2), rtol=1e-9)
