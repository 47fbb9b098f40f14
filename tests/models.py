"""Small models and batches that the tests share."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qianyi.config.schema import Config, LayoutConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from qianyi.model.param import Tree
from qianyi.model.transformer import model_logits
from qianyi.parallel.mesh import make_mesh
from qianyi.parallel.rules import batch_spec

BATCH, SEQ_LEN, VOCAB = 16, 32, 256

GPT = ModelConfig(vocab_size=VOCAB, n_layers=3, d_model=64, n_heads=8, max_seq_len=SEQ_LEN, dtype="float32")
LLAMA = ModelConfig(
    vocab_size=VOCAB,
    n_layers=3,
    d_model=64,
    n_heads=16,
    n_kv_heads=8,
    d_ff=96,
    max_seq_len=SEQ_LEN,
    norm="rmsnorm",
    mlp="swiglu",
    position="rope",
    bias=False,
    tied_embeddings=False,
    dtype="float32",
)


def make_config(model: ModelConfig, layout: LayoutConfig | None = None, **train: Any) -> Config:
    settings = {"batch_size": BATCH, "seq_len": SEQ_LEN, "steps": 10, "z_loss": 1e-3, "loss_chunk_tokens": 48} | train
    return Config(
        model=model,
        layout=layout or LayoutConfig(),
        optimizer=OptimizerConfig(learning_rate=1e-2, clip_norm=0.5),
        schedule=ScheduleConfig(warmup_steps=2),
        train=TrainConfig(**settings),
    )


def logits_of(params: Tree, m: ModelConfig, tokens: np.ndarray) -> np.ndarray:
    """[B, T, V], on one device."""
    config = make_config(m)
    with jax.set_mesh(make_mesh(config.layout, jax.devices()[:1])):
        on_device = jax.shard_map(
            lambda p, t: model_logits(p, {"inputs": t}, config, lambda _, w: w), in_specs=P(), out_specs=P()
        )
        return np.asarray(jax.jit(on_device)(params, tokens))


def host_batch(seed: int = 0) -> dict[str, np.ndarray]:
    """Random tokens; a fifth of the targets is not scored, unevenly over the rows."""
    random = np.random.default_rng(seed)
    tokens = random.integers(0, VOCAB, (BATCH, SEQ_LEN + 1)).astype(np.int32)
    targets = tokens[:, 1:].copy()
    targets[random.random(targets.shape) < np.linspace(0, 0.4, BATCH)[:, None]] = -1
    return {"inputs": tokens[:, :-1], "targets": targets}


def place(batch: dict[str, np.ndarray], config: Config, mesh: Mesh) -> dict[str, jax.Array]:
    sharding = NamedSharding(mesh, batch_spec(config.layout))
    return {name: jax.device_put(array, sharding) for name, array in batch.items()}
