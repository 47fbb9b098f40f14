"""What each term of a plan is, for `qianyi plan --explain`: name -> (formula, source). A test holds the names to those of the cost
model."""

TIME = {
    "products": (
        "layers x microbatches x sum over products [m, k] x [k, n] of 2 m k n (1 + depth / k) x waves / (efficiency x peak), "
        "m and n in tiles of 128, "
        "or (mk + kn + mn) bytes / (efficiency x bandwidth) if longer; forward once (again where recomputed), backward twice",
        "roofline; tiles: Narayanan et al. 2021, section 5; efficiencies fitted (docs/accuracy.md)",
    ),
    "attention": (
        "tokens x heads x 2 (d_key + d_value) x keys seen x (forwards + 2.5) / (efficiency x peak) x (1 + width / d_key)",
        "Dao et al. 2022; backward 5 products to forward's 2: Dao 2023, section 3.1",
    ),
    "elementwise": (
        "2 bytes x tokens x (10 d_model + matrices x d_ff + 2 qkv) x (1 + recomputed + 1.6) x factor / (efficiency x "
        "bandwidth); experts: tokens moved",
        "counted from the block's operations; factor fitted by software lineage",
    ),
    "head": ("the output projection as a product, and 5 passes over float32 logits", "counted"),
    "tensor": (
        "(8 + 3 recomputed) x (t - 1) / t x 2 bytes x tokens x d_model / rate x exposed share",
        "Korthikanti et al. 2022, section 4.2.2",
    ),
    "context": (
        "3 gathers of keys and values, beyond what attention hides",
        "Liu et al. 2023 (ring attention); Llama 3, section 3.3.2",
    ),
    "experts": (
        "4 exchanges (2 more where recomputed) of tokens x d_model x 2 bytes to the distinct places of a token's experts x exposed share",
        "DeepSeek-V3, section 3.2.2",
    ),
    "stages": ("2 messages per chunk and microbatch x exposed share", "Narayanan et al. 2021, section 3.2"),
    "weights": (
        "2 gathers of weights and 1 scatter of gradients per use, beyond what computation hides",
        "Rajbhandari et al. 2020 (ZeRO-3); Zhao et al. 2023 (FSDP)",
    ),
    "bubble": ("(stages - 1) / chunks x time of a microbatch", "Narayanan et al. 2021, section 2.2"),
    "gradients": (
        "scatter and gather (or all-reduce) once per step, beyond the last microbatch's backward pass",
        "Rajbhandari et al. 2020",
    ),
    "optimizer": ("state, gradients and weights read, state and weights written, / bandwidth", "counted"),
    "overhead": ("fixed time of a step, of a layer's kernels, and of experts' many small ones", "fitted by software stack"),
    "jitter": ("share for each doubling of chips beyond a host (GPU) or a slice (TPU)", "fitted"),
}
MEMORY = {
    "weights": ("parameters as stored / (tensor x expert x stage), / shards under ZeRO-3", "Rajbhandari et al. 2020"),
    "weights in use": (
        "copies in the type of computation: of the stage where gathered once per step, else of two layers",
        "qianyi.train.weights",
    ),
    "gradients": (
        "parameters x 4 bytes / (tensor x expert x stage), / shards where they are scattered for each microbatch",
        "Rajbhandari et al. 2020",
    ),
    "new gradients": ("of one microbatch (of a chunk, in a pipeline), before they are added to the others'", "qianyi.train.step"),
    "optimizer": ("moments (and a master copy, where weights are stored in 16 bits) / shards", "Rajbhandari et al. 2020"),
    "activations": (
        "layers x tokens x elements that the remat policy keeps; a pipeline of this program keeps inputs of stages, and one "
        "microbatch's rest",
        "Korthikanti et al. 2022, section 4, generalized; Narayanan et al. 2021",
    ),
    "working set": (
        "what one layer makes on its way backward, gradients of as much, and those of its weights until they are scattered",
        "counted; compared with compiled programs",
    ),
    "logits": ("tokens of a chunk x vocabulary / tensor x 12 bytes, beyond the working set", "counted"),
    "runtime": ("driver and communicators, and what allocators leave unused", "fitted on published peaks (docs/accuracy.md)"),
}
