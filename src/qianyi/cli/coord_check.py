"""`qianyi coord-check`: do activations move equally far at every width, without and with maximal update parametrization?"""

from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from qianyi.config.load import load
from qianyi.config.schema import Config, RunConfig
from qianyi.data.stage import write_json, write_text
from qianyi.errors import ConfigError
from qianyi.parallel.runtime import initialize
from qianyi.verify import picture
from qianyi.verify.coordinates import FLAT, PLACES, Coordinates, check_coordinates


def run(recipe: str, overrides: list[str], widths: str, steps: int, directory: Path) -> None:
    config = load(recipe, overrides).config
    sizes = _parse(widths)
    initialize(RunConfig(platform="cpu", virtual_devices=1))
    print(f"slope of log(change after {steps} steps) over log(width), widths {', '.join(map(str, sizes))}:")
    print(f"{'':10}{''.join(f'{place:>11}' for place in PLACES)}")
    checks: list[Coordinates] = []
    for c in check_coordinates(config, sizes, steps):
        checks.append(c)
        print(
            f"{c.name:10}{''.join(f'{c.slopes[place]:+11.2f}' for place in PLACES)}   {'flat' if c.flat else 'not flat'}",
            flush=True,
        )
    write(checks, recipe, config, directory)
    print(f"{directory / 'coordinates.json'}, {directory / 'coordinates.svg'}")


def write(checks: list[Coordinates], recipe: str, config: Config, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    found = {c.name: {"slopes": c.slopes, "flat": c.flat, "sizes": _as_json(c)} for c in checks}
    rate, widths = config.optimizer.learning_rate, list(checks[0].widths)
    about = {"recipe": recipe, "learning_rate": rate, "widths": widths, "flat_up_to": FLAT}
    write_json(directory / "coordinates.json", {**about, **found})
    write_text(directory / "coordinates.svg", _draw(checks, recipe, rate))


def _as_json(c: Coordinates) -> dict[str, list[list[dict[str, float]]]]:
    return {place: [[size._asdict() for size in sizes] for sizes in by_step] for place, by_step in c.sizes.items()}


def _draw(checks: list[Coordinates], recipe: str, learning_rate: float) -> str:
    steps = len(checks[0].sizes[PLACES[0]]) - 1
    drawn = picture.panels(checks)
    template = resources.files("qianyi.verify").joinpath("coordinates.svg").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        width=drawn[-1].left + picture.WIDTH + 24,
        height=drawn[-1].top + picture.HEIGHT + 60,
        panel_width=picture.WIDTH,
        panel_height=picture.HEIGHT,
        title=f"Coordinate check of {recipe}",
        about=f"How far {steps} steps at learning rate {learning_rate:g} move activations (mean absolute change), by width of the model",
        foot=f"Light to dark: steps 1 to {steps}. Slope: of the last. Hyperparameters carry over between widths where lines are flat.",
        panels=drawn,
    )


def _parse(widths: str) -> list[int]:
    """`64,128` -> [64, 128].

    Raises:
        ConfigError: they are not two or more multiples of the first, growing.
    """
    try:
        sizes = [int(width) for width in widths.split(",")]
    except ValueError:
        raise ConfigError(f"--widths {widths}: expected numbers, such as 64,128,256") from None
    if len(sizes) < 2 or sizes[0] < 4 or sizes != sorted(set(sizes)) or any(size % sizes[0] for size in sizes):
        raise ConfigError(f"--widths {widths}: expected two or more, growing, all multiples of the first, such as 64,128,256")
    return sizes
