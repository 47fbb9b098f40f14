"""The option --layout."""

from qianyi.config.schema import AXES
from qianyi.errors import ConfigError


def layout_overrides(layout: str) -> list[str]:
    """`stage=2,data=4` as overrides; axes that are not named have size one.

    Raises:
        ConfigError: it is not a list of KEY=VALUE.
    """
    pairs = [pair.strip() for pair in layout.split(",") if pair.strip()]
    wrong = [pair for pair in pairs if "=" not in pair]
    if wrong or not pairs:
        raise ConfigError(f"--layout {layout}: expected KEY=VALUE,KEY=VALUE, such as stage=2,data=2,model=2")
    return [*(f"layout.{axis}=1" for axis in AXES), *(f"layout.{pair}" for pair in pairs)]
