"""The command line: every verb is declared here and lives in a file of its own, imported when it is called."""

import errno
import io
import sys
from pathlib import Path
from typing import Annotated

import typer

from qianyi import __version__
from qianyi.cli.data_verbs import data_app
from qianyi.errors import QianyiError

app = typer.Typer(
    name="qianyi",
    help="Qianyi 千亿: train language models, from a laptop to a cluster.\n\nRECIPE is a name from `qianyi recipes` or a YAML file; "
    "OVERRIDES are key.sub=value, such as train.steps=100 layout.data=4. `qianyi show RECIPE` prints every key.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")

Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe or a YAML file.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings that replace the recipe's.")]

Layout = Annotated[str | None, typer.Option("--layout", metavar="KEY=N,...", help="Such as stage=2,data=2,model=2.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qianyi {__version__}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may also follow the verb.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Options before the verb; `main` reads --debug itself, so that it works in any place."""


@app.command("recipes")
def recipes_() -> None:
    """List the shipped recipes."""
    from qianyi.cli import recipes

    recipes.run()


@app.command()
def show(recipe: Recipe, overrides: Overrides = None, layout: Layout = None) -> None:
    """Print a recipe and where each value comes from. With --layout: what lies on a device, and what it sends."""
    from qianyi.cli import show

    show.run(recipe, overrides or [], layout)


@app.command()
def plan(
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="A shipped recipe or a YAML file.")] = None,
    overrides: Overrides = None,
    cluster: Annotated[
        str | None,
        typer.Option("--cluster", "--target", metavar="CHIP:SHAPE", help="Such as h100:128x8, tpu-v5p:8x8x16, or a YAML file."),
    ] = None,
    params: Annotated[str | None, typer.Option(metavar="N", help="In place of a recipe: a size, such as 175b.")] = None,
    tokens: Annotated[str | None, typer.Option(metavar="N", help="Length of the run, such as 300b.")] = None,
    layout: Layout = None,
    keep_layout: Annotated[bool, typer.Option("--keep-layout", help="Cost the recipe's own layout.")] = False,
    precision: Annotated[str | None, typer.Option(help="bf16, fp8, int8, or auto: the fastest.")] = None,
    deadline: Annotated[str | None, typer.Option(metavar="DAYS|DATE", help="Such as 30d or 2027-03-01.")] = None,
    budget: Annotated[str | None, typer.Option(metavar="USD", help="Such as 2m.")] = None,
    price: Annotated[str | None, typer.Option(metavar="USD", help="Per chip and hour, such as 2.5 or 2-3.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Every term with its formula and source.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where the plan (as a recipe), the table or the constants go.")
    ] = None,
    picture: Annotated[Path | None, typer.Option("--picture", metavar="FILE.svg", help="Where a picture goes.")] = None,
    rows: Annotated[Path | None, typer.Option("--rows", metavar="FILE.csv", help="Predict every row of a table of runs.")] = None,
    calibrate: Annotated[
        list[Path] | None, typer.Option("--calibrate", metavar="RUN", help="Refit the constants from a run; may be repeated.")
    ] = None,
    constants: Annotated[
        Path | None, typer.Option("--constants", metavar="FILE", help="Constants that --calibrate wrote.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    ui: Annotated[bool, typer.Option("--ui", help="Serve a page to plan on, at 127.0.0.1, until Ctrl-C.")] = False,
    port: Annotated[int | None, typer.Option("--port", metavar="N", help="Of the page; 8421 unless told.")] = None,
) -> None:
    """Find the best layout on a cluster, and what the run takes: memory, time, days, money, failures."""
    from qianyi.cli import plan
    from qianyi.errors import ConfigError

    if ui:
        fields = {
            "params": params,
            "tokens": tokens,
            "precision": precision,
            "deadline": deadline,
            "budget": budget,
            "price": price,
        }
        others = {"KEY=VALUE": overrides, "--layout": layout, "--keep-layout": keep_layout, "--explain": explain, "--out": out,
                  "--picture": picture, "--rows": rows, "--calibrate": calibrate, "--constants": constants,
                  "--json": as_json}  # fmt: skip
        from qianyi.cli import plan_ui

        plan_ui.run(recipe, cluster, fields, [name for name, value in others.items() if value], port)
        return
    if port is not None:
        raise ConfigError(f"--port {port} is of the page: say --ui too")
    if rows is not None:
        if out is None:
            raise ConfigError("--rows: say where the table goes with --out FILE.csv")
        plan.rows(rows, out)
        return
    if calibrate:
        plan.calibrate(calibrate, cluster, out or Path("constants.yaml"))
        return
    if recipe is not None and "=" in recipe:
        recipe, overrides = None, [recipe, *(overrides or [])]
    asked = plan.question(
        recipe,
        overrides or [],
        cluster,
        params=params,
        tokens=tokens,
        layout=layout,
        precision=precision,
        deadline=deadline,
        budget=budget,
        price=price,
        constants=constants,
        keep_layout=keep_layout,
    )
    plan.run(asked, out, as_json, explain, picture)


@app.command("compile")
def compile_(
    recipe: Recipe,
    overrides: Overrides = None,
    target: Annotated[
        str,
        typer.Option("--target", "--cluster", metavar="CHIP:SHAPE", help="Such as tpu-v5p:4x8x8, tpu-v6e:16x16*4 or h100:32x8."),
    ] = "",
    layout: Layout = None,
    search: Annotated[
        bool, typer.Option("--search", help="Compile the planner's best layouts and take the best that fits.")
    ] = False,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Where the numbers go.")] = None,
    directory: Annotated[
        Path | None, typer.Option("--dir", metavar="DIR", help="Where the report goes; compiled/RECIPE-TARGET unless told.")
    ] = None,
) -> None:
    """Compile the training step for TPUs or GPUs that are not here, with their own compilers: does it fit, what does it send, how fast."""
    from qianyi.cli import compile as compile_cli
    from qianyi.errors import ConfigError

    if not target:
        raise ConfigError("compile: say for what, such as --target tpu-v5p:4x8x8, tpu-v6e:16x16*4 or h100:32x8")
    (compile_cli.run_search if search else compile_cli.run)(recipe, overrides or [], target, layout, json, directory)


@app.command()
def verify(
    recipe: Annotated[str | None, typer.Argument(metavar="RECIPE", help="A shipped recipe or a YAML file.")] = None,
    overrides: Overrides = None,
    layout: Layout = None,
    every: Annotated[bool, typer.Option("--all", help="Every shipped recipe on a spread of layouts.")] = False,
    directory: Annotated[Path, typer.Option("--dir", help="Where the certificate goes.")] = Path("certificate"),
) -> None:
    """Certify that a layout computes what one device computes, on virtual devices, for the recipe made small."""
    from qianyi.cli import verify
    from qianyi.errors import ConfigError

    if every == (recipe is not None):
        raise ConfigError("verify: name a RECIPE, or say --all")
    if recipe is None:
        verify.run_all(directory)
    else:
        verify.run(recipe, overrides or [], layout, directory)


@app.command("coord-check")
def coord_check(
    recipe: Recipe,
    overrides: Overrides = None,
    widths: Annotated[
        str, typer.Option(metavar="N,N,...", help="Widths of the model, multiples of the first.")
    ] = "64,128,256,512",
    steps: Annotated[int, typer.Option(min=1, help="Training steps at each width.")] = 8,
    directory: Annotated[Path, typer.Option("--out", help="Where the numbers and the picture go.")] = Path("coordinates"),
) -> None:
    """Check whether hyperparameters carry over to other widths, without and with model.mup_base_width, for the recipe made small."""
    _check_first(recipe, overrides)
    from qianyi.cli import coord_check

    coord_check.run(recipe, overrides or [], widths, steps, directory)


@app.command()
def train(recipe: Recipe, overrides: Overrides = None) -> None:
    """Train, or continue training, in run.dir."""
    _check_first(recipe, overrides)
    from qianyi.cli import train

    train.run(recipe, overrides or [])


@app.command("eval")
def evaluate(
    recipe: Recipe,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Score the newest checkpoint on held-out text. Prints loss, perplexity and bits per byte, beside baselines that need no model."""
    _check_first(recipe, overrides)
    from qianyi.cli import eval as eval_

    eval_.run(recipe, overrides or [], as_json)


@app.command()
def generate(
    source: Annotated[str, typer.Argument(metavar="RECIPE|MODEL", help="A recipe, a .gguf file or a Hugging Face directory.")],
    overrides: Overrides = None,
    prompt: Annotated[list[str] | None, typer.Option(help="How the text begins; may be given several times.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate at most.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token.")] = 0.8,
    top_p: Annotated[
        float, typer.Option(min=0, max=1, help="Sample from the likeliest tokens of this total probability.")
    ] = 0.95,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same text.")] = 0,
    stream: Annotated[bool, typer.Option(help="Print the text as it comes.")] = True,
) -> None:
    """Continue a prompt with the newest checkpoint of a run, or with a model from a file."""
    prompts, sampling = prompt or [""], {"temperature": temperature, "top_p": top_p, "seed": seed}
    if _is_model(source):
        from qianyi.errors import ConfigError

        if overrides:
            raise ConfigError(f"{source} is a model, not a recipe; {overrides[0]} would change nothing")
        from qianyi.cli import generate

        generate.run_model(Path(source), prompts, max_tokens, stream, **sampling)
    else:
        _check_first(source, overrides)
        from qianyi.cli import generate

        generate.run_recipe(source, overrides or [], prompts, max_tokens, stream, **sampling)


@app.command()
def export(
    recipe: Recipe,
    directory: Annotated[Path, typer.Option("--to", metavar="DIR", help="The directory to write.")],
    overrides: Overrides = None,
) -> None:
    """Write the newest checkpoint as a Hugging Face directory, which `transformers` loads."""
    _check_first(recipe, overrides)
    from qianyi.cli import export

    export.run(recipe, overrides or [], directory)


@app.command()
def report(run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory.")]) -> None:
    """Write RUN/report.html, one page on the run."""
    from qianyi.cli import report

    report.run(run_dir)


@app.command()
def quickstart(
    steps: Annotated[int, typer.Option(min=50, help="Training steps.")] = 300,
    run_dir: Annotated[Path, typer.Option("--dir", help="Where the run goes.")] = Path("runs/quickstart"),
) -> None:
    """From text to report in minutes. Trains a small bilingual model on eight simulated devices, kills it, resumes it, looks at it."""
    from qianyi.cli import quickstart

    quickstart.run(steps, run_dir)


def _is_model(source: str) -> bool:
    """A file or directory with weights, not a recipe."""
    path = Path(source)
    return path.suffix == ".gguf" or (path / "config.json").is_file()


def _check_first(recipe: str, overrides: list[str] | None) -> None:
    """Report a wrong recipe at once, before JAX takes its seconds to be imported."""
    from qianyi.config.check import check
    from qianyi.config.load import load

    check(load(recipe, overrides or []).config)


def main() -> None:
    """Run a verb; expected errors become one message and their exit code."""
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    if not debug:
        # Libraries' callbacks that fail after the fact (tensorstore's, on a damaged checkpoint) would print tracebacks beside our message.
        sys.excepthook = sys.unraisablehook = lambda *_: None
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that has no 千 shows its code.
            stream.reconfigure(errors="backslashreplace")
    try:
        app(arguments)
    except Exception as error:
        if debug:
            raise
        for line in _explain(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(error.exit_code if isinstance(error, QianyiError) else 1 if isinstance(error, OSError) else 70)


def _explain(error: Exception) -> str:
    if isinstance(error, QianyiError):
        return str(error)
    if isinstance(error, OSError):
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        what = "the disk is full; free some room and run again" if full else error.strerror or str(error)
        return f"{error.filename}: {what}" if error.filename else what
    first_line = next(iter(str(error).splitlines()), "")
    return f"internal error: {type(error).__name__}: {first_line}; run again with --debug and report what it prints"
