"""How fast text becomes shards and shards become batches, on the built-in Chinese corpus (1.8 MB).

    python benchmarks/loader.py [--seq-len 1024] [--batch-size 32] [--steps 200]

Prints one JSON line. `first_` is the pass that verifies checksums, `again_` the next; both read ahead in the background and
put the batches on the first device.
"""

import argparse
import json
import tempfile
import time

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qianyi.config.schema import DataConfig, SourceConfig, TrainConfig
from qianyi.data.load import TrainingData
from qianyi.data.prepare import prepare


def tokens_per_second(data: TrainingData, steps: int) -> float:
    sharding = NamedSharding(Mesh(jax.devices()[:1], ("data",)), P("data"))
    began = time.perf_counter()
    for batch in data.batches(sharding, 0, steps):
        batch["targets"].block_until_ready()
    return steps * data.batch_size * data.seq_len / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("--seq-len", 1024), ("--batch-size", 32), ("--steps", 200)):
        parser.add_argument(name, type=int, default=default)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        source = SourceConfig(name="sanguo", path="builtin:sanguo")
        config = DataConfig(dir=root, sources=(source,), validation_fraction=0.05)
        began = time.perf_counter()
        manifest = prepare(config, 4096, lambda *_: None)
        seconds = time.perf_counter() - began
        n_bytes = sum(manifest["sources"]["sanguo"][split]["bytes"] for split in ("train", "validation"))
        data = TrainingData(config, TrainConfig(seq_len=args.seq_len, batch_size=args.batch_size))
        result = {
            "prepare_mb_per_second": round(n_bytes / 1e6 / seconds, 2),
            "first_tokens_per_second": round(tokens_per_second(data, args.steps)),
            "again_tokens_per_second": round(tokens_per_second(data, args.steps)),
        }
    print(json.dumps({**vars(args), **result}))


if __name__ == "__main__":
    main()
