"""Clusters: how many chips, and what joins them.

`h100:128x8` is 128 hosts (or racks: NVLink domains) of 8 chips; `tpu-v5p:8x8x16` a torus; `tpu-v6e:16x16*4` four such slices, which a
data-center network joins. A YAML file describes others:

    chip: h100            # a known chip, or a name of your own with all the keys of `qianyi.plan.chips.Chip`
    shape: 128x8
    hbm_gb: 94            # any number of the chip may be replaced (units as in chips.csv)
    network_between_hosts: fat_tree   # or rail, dragonfly
    oversubscription: 2   # how many times less than the hosts can send passes through the upper switches
    price_usd_per_hour: 2.5
"""

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from qianyi.config.explain import nearest
from qianyi.errors import ConfigError
from qianyi.plan.chips import GIGA, NETWORKS, TERA, Chip, chip

BETWEEN_HOSTS = {"rail": 1.0, "fat_tree": 1.0, "dragonfly": 0.5}
"""Networks between hosts, and the share of a host's bandwidth that traffic between far groups keeps. A dragonfly under adversarial traffic
sends most packets over an intermediate group, each over two global links in place of one (Kim et al. 2008, section 4)."""
SQUARE_POD = 16


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Chips and their networks."""

    name: str
    chip: Chip
    n_chips: int
    domain: tuple[int, ...]
    """Chips along each dimension of one domain: (8,) of a host, (8, 8, 16) of a torus."""
    n_domains: int
    """Hosts of a GPU cluster, slices of a TPU cluster."""
    wraps: tuple[bool, ...]
    """Which dimensions of a torus are closed to rings."""
    far_bytes_per_second: float
    """Between domains, per chip, one direction, with oversubscription."""

    @property
    def domain_chips(self) -> int:
        return math.prod(self.domain)


def cluster(text: str) -> Cluster:
    """A cluster from `CHIP:SHAPE` or the path of a YAML file.

    Raises:
        ConfigError: unknown chip, or a shape that does not exist; the message says what does.
    """
    if text.endswith((".yaml", ".yml")):
        return _from_file(Path(text))
    name, colon, shape = text.partition(":")
    if not colon or not shape:
        raise ConfigError(f"cluster `{text}`: expected CHIP:SHAPE, such as h100:128x8, tpu-v5p:8x8x16 or tpu-v6e:16x16*4")
    return make_cluster(chip(name), shape)


def make_cluster(of: Chip, shape: str, share: float = 1.0) -> Cluster:
    """So many of a chip: `128x8`, `8x8x16`, `16x16*4`. `share` of the bandwidth between domains remains.

    Raises:
        ConfigError: a shape that does not exist.
    """
    wanted = f"{of.name}:{shape}"
    form = re.fullmatch(r"(\d+(?:x\d+)*)(?:\*(\d+))?", shape)
    if form is None or any(int(n) < 1 for n in re.findall(r"\d+", shape)):
        raise ConfigError(f"cluster `{wanted}`: {_expected(of)}")
    dims, slices = tuple(int(n) for n in form[1].split("x")), int(form[2] or 1)
    far = of.host_bytes_per_second * share
    if not of.torus_axes:
        return _switched(of, wanted, dims, form[2], far)
    if len(dims) == 1:
        dims = torus_shape(of, dims[0])
    if len(dims) != of.torus_axes:
        raise ConfigError(f"cluster `{wanted}`: {of.name} is joined to a torus of {of.torus_axes} dimensions; {_expected(of)}")
    if math.prod(dims) > of.domain_chips:
        raise ConfigError(
            f"cluster `{wanted}`: a slice of {math.prod(dims):,} chips is more than a pod of {of.domain_chips:,}; "
            f"several slices are written SHAPE*SLICES, such as {of.name}:{'x'.join(map(str, torus_shape(of, of.domain_chips)))}*2"
        )
    return Cluster(
        name=wanted,
        chip=of,
        n_chips=math.prod(dims) * slices,
        domain=dims,
        n_domains=slices,
        wraps=_closed(of, dims),
        far_bytes_per_second=far,
    )


def torus_shape(of: Chip, n_chips: int) -> tuple[int, ...]:
    """The most cubic (or square) torus of so many chips.

    Raises:
        ConfigError: no torus of this number of dimensions has so many.
    """
    best: tuple[int, ...] | None = None
    for a in range(1, math.isqrt(n_chips) + 1):
        if n_chips % a:
            continue
        rest = n_chips // a
        seconds = [b for b in range(a, math.isqrt(rest) + 1) if rest % b == 0] if of.torus_axes == 3 else [rest]
        for b in seconds:
            dims = (a, b, rest // b) if of.torus_axes == 3 else (a, rest)
            if best is None or (max(dims), -min(dims)) < (max(best), -min(best)):
                best = dims
    if best is None:
        raise ConfigError(f"{n_chips} chips do not form a torus of {of.torus_axes} dimensions")
    return best


def _switched(of: Chip, wanted: str, shape: tuple[int, ...], slices: str | None, far: float) -> Cluster:
    if slices or len(shape) not in {1, 2}:
        raise ConfigError(f"cluster `{wanted}`: {_expected(of)}")
    hosts, per_host = (int(shape[0]), int(shape[-1])) if len(shape) == 2 else _hosts(of, int(shape[0]))
    if per_host > of.domain_chips:
        raise ConfigError(
            f"cluster `{wanted}`: {of.domain_chips} chips of {of.name} at most share a fast network, not {per_host}; "
            f"{hosts * per_host:,} chips are {of.name}:{-(-hosts * per_host // of.domain_chips)}x{of.domain_chips}"
        )
    return Cluster(
        name=wanted, chip=of, n_chips=hosts * per_host, domain=(per_host,), n_domains=hosts, wraps=(), far_bytes_per_second=far
    )


def _hosts(of: Chip, n_chips: int) -> tuple[int, int]:
    """The largest domains that divide the chips evenly."""
    per_host = max(d for d in range(1, min(of.domain_chips, n_chips) + 1) if n_chips % d == 0)
    return n_chips // per_host, per_host


def _closed(of: Chip, dims: tuple[int, ...]) -> tuple[bool, ...]:
    """v5e and v6e close a dimension of 16, optically switched tori close multiples of 4 (TPU documentation, system architecture)."""
    if of.torus_axes == 2:
        return tuple(d % SQUARE_POD == 0 for d in dims)
    return tuple(d % 4 == 0 and min(dims) % 4 == 0 for d in dims)


def _expected(of: Chip) -> str:
    if not of.torus_axes:
        return f"expected HOSTSxCHIPS, such as {of.name}:128x{min(of.domain_chips, 8)}"
    dims = torus_shape(of, min(of.domain_chips, 256 if of.torus_axes == 2 else 512))
    return f"expected {'x'.join('ABC'[: of.torus_axes])}, such as {of.name}:{'x'.join(map(str, dims))}, or with *SLICES"


_CHIP_KEYS = {
    "bf16_tflops": ("bf16_flops", TERA),
    "fp8_tflops": ("fp8_flops", TERA),
    "int8_tops": ("int8_flops", TERA),
    "fp4_tflops": ("fp4_flops", TERA),
    "hbm_gb": ("hbm_bytes", GIGA),
    "hbm_gbps": ("hbm_bytes_per_second", GIGA),
    "links": ("links", 1),
    "link_gbps": ("link_bytes_per_second", GIGA),
    "domain_chips": ("domain_chips", 1),
    "chips_per_host": ("chips_per_host", 1),
    "host_gbps_per_chip": ("host_bytes_per_second", GIGA),
    "tdp_w": ("tdp_watts", 1),
}
_KEYS = [*_CHIP_KEYS, "chip", "like", "network", "shape", "network_between_hosts", "oversubscription", "price_usd_per_hour"]


def _from_file(path: Path) -> Cluster:
    try:
        found: Any = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict) or not {"chip", "shape"} <= set(found):
        raise ConfigError(f"{path}: expected a cluster with the keys chip and shape (see qianyi.plan.cluster)")
    for key in found:
        if key not in _KEYS:
            raise ConfigError(f"{path}: unknown key `{key}`{nearest(str(key), _KEYS)}")
    values: dict[str, Any] = {str(k): v for k, v in found.items()}
    of = replace(chip(str(values.get("like", values["chip"]))), name=str(values["chip"]))
    changes: dict[str, Any] = {}
    for key, (name, unit) in _CHIP_KEYS.items():
        if key in values:
            changes[name] = _number(path, key, values[key]) * unit
    if "network" in values:
        changes["network"] = _choice(path, "network", values["network"], list(NETWORKS))
    if "price_usd_per_hour" in values:
        price = _number(path, "price_usd_per_hour", values["price_usd_per_hour"])
        changes |= {"price_low": price, "price_high": price}
    between = _choice(path, "network_between_hosts", values.get("network_between_hosts", "rail"), list(BETWEEN_HOSTS))
    share = BETWEEN_HOSTS[between] / _number(path, "oversubscription", values.get("oversubscription", 1))
    changed = replace(of, **changes)
    integers: dict[str, Any] = {k: int(getattr(changed, k)) for k in ("links", "domain_chips", "chips_per_host")}
    return make_cluster(replace(changed, **integers), str(values["shape"]), share)


def _number(path: Path, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ConfigError(f"{path}: {key}: expected a number above 0, found `{value}`")
    return float(value)


def _choice(path: Path, key: str, value: Any, known: list[str]) -> str:
    if value not in known:
        raise ConfigError(f"{path}: {key}: expected one of {', '.join(known)}, found `{value}`{nearest(str(value), known)}")
    return str(value)
