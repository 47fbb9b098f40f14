"""Labels by people: which texts are asked, who said what, where they differ and what was decided.

DIR/review.json     labels, annotators, the texts to be labelled, in order
DIR/labels.jsonl    what annotators did: grows only; undoing adds a line, too
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qianyi.data.stage import Json, write_json
from qianyi.errors import DataError
from qianyi.label.agreement import Agreement, cohen_kappa
from qianyi.label.journal import append_record, read_records

DECIDED = "adjudication"
"""Who decides between annotators; no annotator may have this name."""
SETUP, JOURNAL = "review.json", "labels.jsonl"


@dataclass(frozen=True)
class Item:
    """A text to be labelled."""

    id: str
    text: str
    source: str = ""
    guess: str = ""
    """What a classifier thinks; shown where differences are decided only, so that it leads no annotator."""


@dataclass
class Review:
    """A review that goes on: its setup, and what its journal says. One process writes it."""

    directory: Path
    labels: tuple[str, ...]
    annotators: tuple[str, str]
    items: tuple[Item, ...]
    given: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    """By annotator (or DECIDED), label by id."""
    done: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    """By annotator, ids in the order in which they were labelled."""

    def next_item(self, who: str) -> Item | None:
        """The first text that this annotator has not labelled; of DECIDED, the first that both labelled otherwise and nobody decided."""
        wanted = self.disagreements() if who == DECIDED else [item.id for item in self.items]
        mine = self.given.get(who, {})
        by_id = {item.id: item for item in self.items}
        return next((by_id[name] for name in wanted if name not in mine), None)

    def label(self, who: str, name: str, label: str) -> None:
        """Records a label; on disk when this returns.

        Raises:
            DataError: there is no such annotator, text or label.
        """
        self._require(who, name)
        if label not in self.labels:
            raise DataError(f"no label `{label}` in this review; there are {', '.join(self.labels)}")
        self._do({"who": who, "id": name, "label": label, "time": time.time()})

    def undo(self, who: str) -> str | None:
        """Takes back the last label of an annotator; the id of its text, None if there is none."""
        self._require(who)
        if not self.done.get(who):
            return None
        name = self.done[who][-1]
        self._do({"who": who, "id": name, "label": None, "time": time.time()})
        return name

    def disagreements(self) -> list[str]:
        """Ids of texts that both annotators labelled, not alike."""
        a, b = (self.given.get(who, {}) for who in self.annotators)
        return [item.id for item in self.items if item.id in a and item.id in b and a[item.id] != b[item.id]]

    def agreement(self) -> Agreement:
        """Over the texts that both have labelled."""
        a, b = (self.given.get(who, {}) for who in self.annotators)
        both = [item.id for item in self.items if item.id in a and item.id in b]
        return cohen_kappa([a[name] for name in both], [b[name] for name in both])

    def settled(self) -> dict[str, str]:
        """Label by id: what was decided, else what both said, else what the only one said."""
        out = dict[str, str]()
        for item in self.items:
            said = {self.given[who][item.id] for who in self.annotators if item.id in self.given.get(who, {})}
            if decided := self.given.get(DECIDED, {}).get(item.id):
                out[item.id] = decided
            elif len(said) == 1:
                out[item.id] = said.pop()
        return out

    def apply(self, record: Json) -> None:
        """Takes a line of the journal into account."""
        who, name, label = record["who"], record["id"], record["label"]
        mine, order = self.given.setdefault(who, {}), self.done.setdefault(who, [])
        if name in order:
            order.remove(name)
        if label is None:
            mine.pop(name, None)
        else:
            mine[name] = label
            order.append(name)

    def _do(self, record: Json) -> None:
        append_record(self.directory / JOURNAL, record)
        self.apply(record)

    def _require(self, who: str, name: str | None = None) -> None:
        if who not in (*self.annotators, DECIDED):
            raise DataError(f"no annotator `{who}` in this review; there are {', '.join(self.annotators)}")
        if name is not None and all(item.id != name for item in self.items):
            raise DataError(f"no text `{name}` in this review")


def start_review(directory: Path, items: Sequence[Item], labels: Sequence[str], annotators: Sequence[str]) -> Review:
    """Begins a review in a directory, or adds texts that are not in it yet to the one that is there.

    Raises:
        DataError: labels or annotators cannot be used, or are others than those of the review that is there.
    """
    labels, annotators = tuple(dict.fromkeys(labels)), tuple(annotators)
    if len(annotators) != 2 or len(set(annotators)) != 2 or DECIDED in annotators or not all(annotators):
        raise DataError(
            f"a review has two annotators with names of their own (none is `{DECIDED}`), not: {', '.join(annotators)}"
        )
    if not 2 <= len(labels) <= 26:
        raise DataError(f"a review has 2 to 26 labels, not {len(labels)}: give them as --labels good,bad")
    old: tuple[Item, ...] = ()
    if (directory / SETUP).exists():
        before = open_review(directory)
        if (before.labels, before.annotators) != (labels, annotators):
            said = f"labels {', '.join(before.labels)} and annotators {', '.join(before.annotators)}"
            raise DataError(f"{directory / SETUP}: this review has the {said}; give the same, or another directory")
        old = before.items
    known = {item.id for item in old}
    fresh = {item.id: item for item in items if item.id not in known}
    directory.mkdir(parents=True, exist_ok=True)
    setup = {"labels": labels, "annotators": annotators, "items": [vars(item) for item in (*old, *fresh.values())]}
    write_json(directory / SETUP, setup)
    return open_review(directory)


def open_review(directory: Path) -> Review:
    """A review as its journal left it.

    Raises:
        DataError: it is missing or broken.
    """
    path = directory / SETUP
    try:
        setup = json.loads(path.read_text(encoding="utf-8"))
        items = tuple(Item(**item) for item in setup["items"])
        review = Review(directory, tuple(setup["labels"]), (setup["annotators"][0], setup["annotators"][1]), items)
    except FileNotFoundError:
        raise DataError(f"{path}: missing; `qianyi data review` begins a review") from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{path}: broken ({error}); put the file back, labels in {JOURNAL} are not lost") from None
    for line, record in enumerate(read_records(directory / JOURNAL), 1):
        if not {"who", "id", "label"} <= record.keys():
            raise DataError(f"{directory / JOURNAL}:{line}: expected who, id and label; mend or delete the line")
        review.apply(record)
    return review
