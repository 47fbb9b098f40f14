"""Qianyi: the project's own step and state, on one device."""

import sys

from common import B1, B2, CLIP_NORM, EPS, LEARNING_RATE, SIZES, WEIGHT_DECAY, arguments, measure, pin

options = arguments()
pin(options.threads)

import jax  # noqa: E402 - after the processors are set
from jax.sharding import NamedSharding  # noqa: E402

from qianyi.config.counts import parameter_count  # noqa: E402
from qianyi.config.schema import Config, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig  # noqa: E402
from qianyi.parallel.mesh import make_mesh  # noqa: E402
from qianyi.parallel.rules import batch_spec  # noqa: E402
from qianyi.train.state import init_state  # noqa: E402
from qianyi.train.step import make_train_step  # noqa: E402


def main() -> None:
    size = SIZES[options.size]
    config = Config(
        model=ModelConfig(
            vocab_size=size.vocab_size,
            n_layers=size.n_layers,
            d_model=size.d_model,
            n_heads=size.n_heads,
            max_seq_len=size.seq_len,
            dtype=options.dtype,
        ),
        optimizer=OptimizerConfig(
            learning_rate=LEARNING_RATE, b1=B1, b2=B2, eps=EPS, weight_decay=WEIGHT_DECAY, clip_norm=CLIP_NORM
        ),
        schedule=ScheduleConfig(kind="constant"),
        train=TrainConfig(batch_size=size.batch_size, seq_len=size.seq_len),
    )
    mesh = make_mesh(config.layout)
    with jax.set_mesh(mesh):
        state = init_state(config, mesh)
        train_step = make_train_step(config)
        sharding = NamedSharding(mesh, batch_spec(config.layout))

        def step(inputs, targets) -> float:
            nonlocal state
            batch = {"inputs": jax.device_put(inputs, sharding), "targets": jax.device_put(targets, sharding)}
            state, metrics = train_step(state, batch)
            jax.block_until_ready(state)
            return float(metrics.loss)

        versions = {"jax": jax.__version__, "python": sys.version.split()[0]}
        measure(options, step, {"versions": versions, "parameters": parameter_count(config.model)})


main()
