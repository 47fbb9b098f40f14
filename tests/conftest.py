"""Eight virtual CPU devices for every test."""

import os

import jax
import pytest
from compilers import find_compilers

from qianyi.cli.verify import QUICK_COMPILER

find_compilers()

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

# Most of the time of these tests goes into code generation, below all that they are about. The commands that they start read the
# environment as it was, and run the code that users run.
_flags = os.environ.get("XLA_FLAGS")
os.environ["XLA_FLAGS"] = f"{_flags or ''} {QUICK_COMPILER}"
jax.devices()
if _flags is None:
    del os.environ["XLA_FLAGS"]
else:
    os.environ["XLA_FLAGS"] = _flags


@pytest.fixture(autouse=True)
def _no_process_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QIANYI_NUM_PROCESSES", "QIANYI_PROCESS_ID", "QIANYI_COORDINATOR"):
        monkeypatch.delenv(name, raising=False)
