"""Sources elsewhere: object stores through fsspec, Hugging Face datasets through `datasets`.

Both are extras, imported when they are named.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from qianyi.corpus.collect.found import Reading, Results
from qianyi.corpus.collect.records import document_of
from qianyi.data.stage import Json
from qianyi.errors import DataError, QianyiError

_BATCH_ROWS = 256


@dataclass(frozen=True)
class Object:
    """A file of a store, and what tells that it has not changed."""

    url: str
    name: str
    """Below the source's own path."""
    size_bytes: int
    version: str


def open_object(url: str) -> BinaryIO:
    """A file of a store, seekable, read by blocks."""
    store, path = _store(url)
    return store.open(path, "rb")


def list_objects(url: str) -> list[Object]:
    """The files below `url`, or itself, sorted by name.

    Raises:
        DataError: nothing is there, or the store says no.
    """
    store, root = _store(url)
    scheme = url.partition("://")[0]
    try:
        files: dict[str, Any] = store.find(root, detail=True)
    except Exception as error:  # stores raise what their clients raise
        raise DataError(f"{url}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no answer'}") from None
    if not files:
        raise DataError(f"{url}: nothing is there")
    top = root.rstrip("/")
    objects: list[Object] = []
    for path, info in sorted(files.items()):
        name = path.removeprefix(top).lstrip("/") or path.rpartition("/")[2]
        version = str(
            info.get("ETag") or info.get("etag") or info.get("md5Hash") or info.get("mtime") or info.get("created") or ""
        )
        objects.append(Object(f"{scheme}://{path}", name, int(info.get("size") or 0), version))
    return objects


def _store(url: str) -> tuple[Any, str]:
    try:
        import fsspec  # noqa: PLC0415
    except ImportError:
        raise DataError(f"{url}: object stores need fsspec: pip install 'qianyi[remote]'") from None
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise DataError(f"{url}: {error}; pip install 'qianyi[remote]'") from None
    except ValueError as error:
        raise DataError(f"{url}: {error}") from None


@dataclass(frozen=True)
class HubDataset:
    """`hf:DATASET[/CONFIG][#SPLIT]`. A dataset is a local directory, NAME, or OWNER/NAME; then CONFIG is what follows."""

    path: str
    config: str | None
    split: str

    def load(self) -> Any:
        """The dataset, from the cache of `datasets` or from the hub.

        Raises:
            DataError: it cannot be had.
        """
        try:
            import datasets  # noqa: PLC0415
        except ImportError:
            raise DataError(f"hf:{self.path}: Hugging Face datasets need `datasets`: pip install 'qianyi[hf]'") from None
        datasets.disable_progress_bars()
        try:
            if (Path(self.path) / "state.json").exists():  # as `save_to_disk` writes it
                return datasets.load_from_disk(self.path)
            if (Path(self.path) / "dataset_dict.json").exists():
                return datasets.load_from_disk(self.path)[self.split]
            return datasets.load_dataset(self.path, self.config, split=self.split)
        except QianyiError:
            raise
        except Exception as error:  # the library raises whatever the hub, the network and the files bring
            reason = str(error).splitlines()[0] if str(error) else ""
            raise DataError(f"hf:{self.path}: {type(error).__name__}: {reason}") from None


def hub_dataset(spec: str) -> HubDataset:
    """What `hf:SPEC` names; the split is `train` unless it says."""
    path, _, split = spec.partition("#")
    split = split or "train"
    if Path(path).exists():
        return HubDataset(path, None, split)
    if Path(path).parent.is_dir() and path.startswith(("/", ".")):
        return HubDataset(str(Path(path).parent), Path(path).name, split)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+){0,2}", path):
        raise DataError(f"hf:{spec}: expected hf:OWNER/NAME[/CONFIG][#SPLIT], or a local directory")
    parts = path.split("/")
    return HubDataset("/".join(parts[:2]), parts[2] if len(parts) > 2 else None, split)


def read_rows(dataset: HubDataset, rows: tuple[int, int], origin: str, reading: Reading) -> Results:
    """Documents of rows from the first of `rows` up to but without the second."""
    for row, record in enumerate(_records(dataset.load(), rows), rows[0] + 1):
        yield document_of(record, f"{origin}#{row}", reading)


def _records(loaded: Any, rows: tuple[int, int]) -> Iterator[Json]:
    for first in range(rows[0], rows[1], _BATCH_ROWS):
        columns: Json = loaded[first : min(first + _BATCH_ROWS, rows[1])]
        names = list(columns)
        for values in zip(*columns.values(), strict=True):
            yield dict(zip(names, values, strict=True))
