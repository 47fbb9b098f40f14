"""Hugging Face `transformers` GPT2LMHeadModel with its fused attention."""

import torch
import transformers
from common import SIZES, arguments, measure
from torch_gpt import make_step

if __name__ == "__main__":
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    size = SIZES[options.size]
    config = transformers.GPT2Config(
        vocab_size=size.vocab_size,
        n_positions=size.seq_len,
        n_embd=size.d_model,
        n_layer=size.n_layers,
        n_head=size.n_heads,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = transformers.GPT2LMHeadModel(config)

    def loss_of(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = model(inputs).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    about = {"versions": versions, "parameters": sum(p.numel() for p in model.parameters())}
    measure(options, make_step(model, loss_of, options.dtype), about)
