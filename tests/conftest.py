"""Eight virtual CPU devices for every test."""

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(autouse=True)
def _no_process_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QIANYI_NUM_PROCESSES", "QIANYI_PROCESS_ID", "QIANYI_COORDINATOR"):
        monkeypatch.delenv(name, raising=False)
