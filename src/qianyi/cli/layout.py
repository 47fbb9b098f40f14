"""The option --layout."""

from qianyi.config.schema import LayoutConfig
from qianyi.config.source import inline
from qianyi.errors import ConfigError


def layout_overrides(layout: str) -> list[str]:
    """`stage=2,data=4` as overrides: a whole layout, in which what is not named has its default.

    Raises:
        ConfigError: it is not a list of KEY=VALUE.
    """
    pairs = [pair.strip() for pair in layout.split(",") if pair.strip()]
    if not pairs or any("=" not in pair for pair in pairs):
        raise ConfigError(f"--layout {layout}: expected KEY=VALUE,KEY=VALUE, such as stage=2,data=2,model=2")
    defaults = [f"layout.{key}={inline(value)}" for key, value in LayoutConfig().model_dump().items()]
    return [*defaults, *(f"layout.{pair}" for pair in pairs)]
