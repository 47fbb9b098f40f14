"""A few shapes of SVG, as text."""

from dataclasses import dataclass
from html import escape

STYLE = (
    "text{font:12px Inter,'Noto Sans','Segoe UI',Helvetica,Arial,'PingFang SC','Noto Sans CJK SC','Microsoft YaHei',sans-serif;"
    "font-variant-numeric:tabular-nums}"
    ".ink{fill:#23262b}.soft{fill:#6a6e76}.bold{font-weight:600}.paper{fill:#fffefb}.empty{fill:#efebe3}"
    ".rule{stroke:#e0dad0;fill:none}.line{stroke:#1d6a87;fill:none;stroke-width:1.6}.limit{stroke:#b23a26;fill:none;stroke-dasharray:4 3}"
    ".blue{fill:#1d6a87}.red{fill:#b23a26}.white{fill:#fff}.dark{fill:#23262b}"
)
"""Classes rather than colours where a page may have a dark side: it gives the classes other values."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One part of a picture: a title, a remark beside it, and what is drawn below."""

    title: str
    note: str
    width: int
    height: int
    body: str

    def svg(self) -> str:
        """Alone, for a page that has STYLE; it stretches to the room there is."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-label="{escape(self.title)}">{self.body}</svg>'
        )


def text(x: float, y: float, words: str, of: str = "ink", *, anchor: str = "start", size: int | None = None) -> str:
    """Words that begin (or with `middle` or `end`: stand around, stop) at x, on the baseline y."""
    style = f' style="font-size:{size}px"' if size else ""
    where = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{of}"{where}{style}>{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, fill: str, hint: str = "") -> str:
    """A rectangle of a colour (`#...`) or a class, with words for the pointer."""
    how = f'fill="{fill}"' if fill.startswith("#") else f'class="{fill}"'
    shape = f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.2f}" height="{height:.1f}" {how}'
    return f"{shape}><title>{escape(hint)}</title></rect>" if hint else f"{shape}/>"


def path(d: str, of: str) -> str:
    return f'<path d="{d}" class="{of}"/>'


def width_of(words: str, size: int = 12) -> float:
    """Pixels, about, and rather too many."""
    return size * sum(1.02 if ord(letter) > 0x2E7F else 0.6 for letter in words)


def on(fill: str) -> str:
    """The class of words on a colour: its relative luminance decides (WCAG 2.2)."""
    red, green, blue = (int(fill[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return "white" if 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 < 0.3 else "dark"


def mixed(fill: str, other: str, share: float) -> str:
    """A colour with a share of another."""
    both = zip(*([int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in (fill, other)), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in both)
