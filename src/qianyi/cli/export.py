"""`qianyi export`: the newest checkpoint as a Hugging Face directory."""

from pathlib import Path

import jax

from qianyi.cli.run import begin, restore_params
from qianyi.config.schema import LayoutConfig
from qianyi.data.prepare import tokenizer_path
from qianyi.export.families import family_of
from qianyi.export.hf import write_hf
from qianyi.parallel.mesh import make_mesh


def run(recipe: str, overrides: list[str], directory: Path) -> None:
    session = begin(recipe, overrides)
    family = family_of(session.config.model)  # before anything is restored
    mesh = make_mesh(LayoutConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        params, step = restore_params(session, mesh)
    written = (session.run_dir / "checkpoints" / f"{step:08d}").stat().st_mtime_ns
    source = {"run": str(session.run_dir.absolute()), "step": step, "written": written}
    write_hf(directory, jax.device_get(params), session.config.model, tokenizer_path(session.config.data), source)
    print(f"{directory}: {family.name}, step {step}")
