"""MaxText: its own model, state and jitted training step, driven as its training loop drives them.

Its nearest model is the decoder block `gpt3`: fused query, key and value, biases, learned positions, tied embeddings; as many
parameters as the others. What stays different: norm scales are stored as an offset from one, weight decay reaches vectors too
unless masked (it is masked here), attention has a mask of segments beside the causal one, weights are drawn by its own
rules (so its loss begins higher), its step reports the norms of parameters and gradients, and it always rematerializes.
"""

import os
import sys
import tempfile
from pathlib import Path

from common import B1, B2, CLIP_NORM, EPS, LEARNING_RATE, SIZES, WEIGHT_DECAY, arguments, measure, pin

options = arguments()
pin(options.threads)
os.environ["DECOUPLE_GCLOUD"] = "TRUE"  # its own switch for machines without Google Cloud
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402 - after the processors are set
import numpy as np  # noqa: E402
from flax import nnx  # noqa: E402
from flax.linen import logical_axis_rules  # noqa: E402
from maxtext.common.goodput import create_goodput_recorder  # noqa: E402
from maxtext.configs import pyconfig  # noqa: E402
from maxtext.trainers.pre_train.train import eval_step, train_step  # noqa: E402
from maxtext.utils import sharding, train_utils  # noqa: E402


def settings(directory: str) -> dict[str, object]:
    size = SIZES[options.size]
    return {
        "run_name": "benchmark",
        "base_output_directory": directory,
        "hardware": "cpu",
        "skip_jax_distributed_system": True,
        "enable_checkpointing": False,
        "dataset_type": "synthetic",
        "log_config": False,
        "jax_cache_dir": "",
        "steps": options.warmup + options.steps,
        # The model.
        "decoder_block": "gpt3",
        "base_emb_dim": size.d_model,
        "base_num_query_heads": size.n_heads,
        "base_num_kv_heads": size.n_heads,
        "head_dim": size.d_model // size.n_heads,
        "base_mlp_dim": 4 * size.d_model,
        "base_num_decoder_layers": size.n_layers,
        "vocab_size": size.vocab_size,
        "max_target_length": size.seq_len,
        "trainable_position_size": size.seq_len,
        "per_device_batch_size": size.batch_size,
        "mlp_activations": ["gelu"],
        "fused_qkv": True,
        "logits_via_embedding": True,
        "normalize_embedding_logits": False,
        "normalization_layer_epsilon": 1e-5,
        "enable_dropout": False,
        "attention": "dot_product",
        # Keeps what matmuls and attention made. `none` would recompute whole layers: MaxText then passes no policy to jax.checkpoint.
        "remat_policy": "minimal_with_context",
        "dtype": options.dtype,
        # The optimizer.
        "opt_type": "adamw",
        "learning_rate": LEARNING_RATE,
        "warmup_steps_fraction": 0.0,
        "adam_b1": B1,
        "adam_b2": B2,
        "adam_eps": EPS,
        "adam_weight_decay": WEIGHT_DECAY,
        "adamw_mask": [".*bias", ".*norm.*"],
        "gradient_clipping_threshold": CLIP_NORM,
    }


def main(directory: str) -> None:
    base = Path(sys.modules["maxtext.configs"].__path__[0]) / "base.yml"
    config = pyconfig.initialize(["train", str(base)], **settings(directory))
    _, _, state_shardings, _, mesh, _, _, _, _, _, state = train_utils.setup_train_loop(config, create_goodput_recorder(config))
    parameters = sum(a.size for a in jax.tree.leaves(nnx.state(state.model, nnx.Param)))
    graph, state = nnx.split(state)
    param_shardings, state_shardings = sharding.maybe_update_params_sharding_with_opt(config, state_shardings)
    jitted, _ = train_utils.jit_train_and_eval_step(
        config, graph, mesh, state, state_shardings, train_step, eval_step, None, param_shardings
    )
    data_sharding = sharding.get_input_data_sharding(config, mesh)

    def step(inputs: np.ndarray, targets: np.ndarray) -> float:
        nonlocal state
        positions = np.broadcast_to(np.arange(inputs.shape[1], dtype=np.int32), inputs.shape)
        ones = np.ones_like(inputs)
        batch = {
            "inputs": inputs,
            "inputs_position": positions,
            "inputs_segmentation": ones,
            "targets": targets,
            "targets_position": positions,
            "targets_segmentation": ones,
        }
        batch = jax.device_put(batch, data_sharding)
        with jax.set_mesh(mesh), logical_axis_rules(config.logical_axis_rules):
            state, metrics = jitted(state, batch)
        jax.block_until_ready(state)
        return float(metrics["scalar"]["learning/loss"])

    versions = {"maxtext": "0.2.5", "jax": jax.__version__, "python": sys.version.split()[0]}
    measure(options, step, {"versions": versions, "parameters": parameters})


with tempfile.TemporaryDirectory() as directory:
    main(directory)
