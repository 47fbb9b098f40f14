"""`qianyi generate`: text from the newest checkpoint."""

import time

import jax

from qianyi.cli.run import Session, begin
from qianyi.config.schema import LayoutConfig
from qianyi.data.prepare import tokenizer_path
from qianyi.data.tokenizer import end_token
from qianyi.generate.sample import generate_tokens, make_extend, stream_text
from qianyi.model.param import Tree
from qianyi.monitor.sinks import append_json_line
from qianyi.parallel.mesh import make_mesh
from qianyi.train.checkpoint import make_record
from qianyi.train.state import abstract_state


def run(
    recipe: str,
    overrides: list[str],
    prompts: list[str],
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    stream: bool,
) -> None:
    session = begin(recipe, overrides)
    model, tokenizer = session.config.model, session.tokenizer
    end = end_token(tokenizer, tokenizer_path(session.config.data))
    mesh = make_mesh(LayoutConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        params, step = _restore(session, mesh)
        extend = make_extend(model)
        for prompt in prompts:
            # Documents begin after the end of another.
            ids = [end, *tokenizer.encode(prompt, add_special_tokens=False).ids]
            tokens = generate_tokens(
                extend, params, model, ids, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed
            )
            text = ""
            if stream:
                print(prompt, end="", flush=True)
            for piece in stream_text(tokenizer, tokens, end):
                text += piece
                if stream:
                    print(piece, end="", flush=True)
            print("" if stream else prompt + text, flush=True)
            settings = {"temperature": temperature, "top_p": top_p, "seed": seed, "step": step, "time": time.time()}
            append_json_line(session.run_dir / "samples.jsonl", {"prompt": prompt, "text": text, **settings})


def _restore(session: Session, mesh: jax.sharding.Mesh) -> tuple[Tree, int]:
    """The newest parameters, whole on one device."""
    checkpoints = session.checkpoints(must_exist=True)
    one_device = session.config.model_copy(update={"layout": LayoutConfig()})
    record = make_record(one_device, session.training_data.record)
    state = checkpoints.restore(abstract_state(one_device, mesh), record)
    checkpoints.close()
    return state.params, int(state.step)
