"""Which layers a pipeline stage has, without JAX.

A stage has `chunks` virtual stages; virtual stage v is on stage v % stages. Layers are spread so that the most loaded virtual stage is as
light as can be, counting what the embedding and the output projection cost; where that is uneven, places stay empty.
"""

from qianyi.config.counts import head_cost_in_layers
from qianyi.config.schema import Config

EMPTY = -1
"""A place without a layer."""


def layers_of_virtual_stages(config: Config) -> list[int]:
    """How many layers each virtual stage has."""
    layout, n_layers = config.layout, config.model.n_blocks
    n = layout.stage * layout.chunks
    load, layers = [0.0] * n, [0] * n
    if n > 1:
        load[0] = config.model.n_layers - n_layers  # the first dense layers are there
        load[-1] = head_cost_in_layers(config.model, config.train.seq_len)
    # No stage has more layers than an even spread would need: empty places cost memory on all of them.
    most = -(-n_layers // n)
    for _ in range(n_layers):
        # Of equally loaded ones the middle first: the first has the embedding, the last the loss.
        lightest = min((v for v in range(n) if layers[v] < most), key=lambda v: (load[v], v in {0, n - 1}))
        layers[lightest] += 1
        load[lightest] += 1
    return layers


def layer_places(config: Config) -> tuple[int, ...]:
    """The layer in each place of the stacked parameters, EMPTY where none is: stage after stage, in each chunk after chunk."""
    layout = config.layout
    layers = layers_of_virtual_stages(config)
    most = max(layers)
    first = [sum(layers[:v]) for v in range(len(layers))]
    return tuple(
        first[v] + i if i < layers[v] else EMPTY
        for stage in range(layout.stage)
        for v in range(stage, len(layers), layout.stage)
        for i in range(most)
    )
