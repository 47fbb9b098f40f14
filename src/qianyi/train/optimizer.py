"""The optimizer, composed from optax."""

import optax

from qianyi.config.schema import Config
from qianyi.model.decoder import decoder_params
from qianyi.model.param import decay_mask
from qianyi.train.schedule import make_schedule


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """AdamW: decoupled decay of matrices, moments in float32. Clipping is the step's, which knows the global norm."""
    o = config.optimizer
    return optax.chain(
        optax.scale_by_adam(o.b1, o.b2, o.eps),
        optax.add_decayed_weights(o.weight_decay, decay_mask(decoder_params(config.model))),
        optax.scale_by_learning_rate(make_schedule(config.schedule, o.learning_rate, config.train.steps)),
    )
