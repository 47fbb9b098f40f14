"""Peak matmul throughput of devices, the denominator of MFU: dense bf16, without sparsity, as the vendors publish it."""

import jax

PEAK_FLOPS = {
    # Google Cloud TPU documentation, system architecture pages: bf16 peak per chip; v2 and v3 have two devices per chip.
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    # NVIDIA data sheets: bf16 dense tensor cores, SXM parts.
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak_flops(override: float | None) -> float | None:
    """Peak FLOP/s of all devices of the run together; `override` is per device. None where the device is not in the table."""
    one = override or PEAK_FLOPS.get(jax.devices()[0].device_kind)
    return None if one is None else one * jax.device_count()
