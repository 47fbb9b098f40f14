"""A map of topics, as points in a square of 1,000 units."""

from collections.abc import Sequence
from dataclasses import dataclass

from qianyi.data.stage import Json
from qianyi.errors import DataError

MAX_POINTS = 4000
MAX_NAMED = 12
"""Clusters with a colour and a line of words; the others are grey."""
MAX_WORDS, MAX_OUTLIERS = 8, 5


@dataclass(frozen=True)
class Topic:
    """A cluster: its words, its documents, and its points as SVG path data."""

    words: str
    documents: int
    path: str


@dataclass(frozen=True)
class Topics:
    """The largest clusters, and the points of all others."""

    points: int
    named: tuple[Topic, ...]
    others: tuple[Topic, ...]
    outliers: tuple[tuple[str, str], ...]
    """(source, beginning of the text) of documents that are far from all others, the farthest first."""


def topics(found: Json) -> Topics:
    """Where the points of a topics.json lie.

    Raises:
        DataError: it is not as expected.
    """
    try:
        points = [(float(p["x"]), float(p["y"]), int(p["cluster"])) for p in found["points"]]
        clusters = [Topic(", ".join(c["words"][:MAX_WORDS]), int(c["n"]), "") for c in found["clusters"]]
        named = {str(p["id"]): (str(p["source"]), str(p["title"])) for p in found["points"]}
        outliers = [named[i] for i in found["outliers"][:MAX_OUTLIERS]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            "topics.json: expected `points` with id, source, title, x, y and cluster, `clusters` with words and n, and `outliers` with ids "
            f"of points ({type(error).__name__}: {error}); delete it and make it again"
        ) from None
    thin = points[:: max(1, -(-len(points) // MAX_POINTS))]
    order = sorted(range(len(clusters)), key=lambda k: -clusters[k].documents)
    place = _placed(thin)
    drawn = [Topic(clusters[k].words, clusters[k].documents, _path(place, thin, {k})) for k in order[:MAX_NAMED]]
    rest = {cluster for _, _, cluster in points} - set(order[:MAX_NAMED])
    others = (Topic("", 0, _path(place, thin, rest)),) if rest else ()
    return Topics(len(points), tuple(drawn), others, tuple(outliers))


def _placed(points: Sequence[tuple[float, float, int]]) -> list[tuple[float, float]]:
    """In the square, with one scale for both axes."""
    if not points:
        return []
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    reach = max(max(xs) - min(xs), max(ys) - min(ys)) or 1.0
    left, top = (min(xs) + max(xs) - reach) / 2, (min(ys) + max(ys) - reach) / 2
    return [(20 + 960 * (x - left) / reach, 20 + 960 * (y - top) / reach) for x, y, _ in points]


def _path(place: Sequence[tuple[float, float]], points: Sequence[tuple[float, float, int]], clusters: set[int]) -> str:
    """Dots: lines of no length, which round caps draw."""
    return "".join(f"M{x:.0f},{y:.0f}h0" for (x, y), (_, _, cluster) in zip(place, points, strict=True) if cluster in clusters)
