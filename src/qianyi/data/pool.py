"""One function over many jobs, here or in worker processes. The order of results is that of the jobs."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from qianyi.data.stage import Json
from qianyi.errors import ResourceError

Work = Callable[[Json], Json]
"""A function of a module, of and to JSON."""


def run_jobs(work: Work, jobs: list[Json], workers: int) -> Iterator[Json]:
    """Results of `work`, in the order of the jobs, as soon as they and those before are there.

    Raises:
        ResourceError: a worker was ended from outside, by the system for want of memory most likely.
    """
    if workers == 1 or len(jobs) < 2:
        yield from map(work, jobs)
        return
    # Fresh processes: this one may hold threads and devices (JAX), which a fork does not survive.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=_begin_worker) as pool:
        try:
            yield from pool.map(work, jobs)
        except BrokenProcessPool:
            raise ResourceError(
                "a worker process was ended from outside, for want of memory most likely; run the same command again with fewer "
                "workers, it goes on where it stopped"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def usable_cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _begin_worker() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers share the processors already
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for ever, or write what the next run writes too."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
