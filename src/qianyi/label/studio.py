"""Reviews as JSON of Label Studio and back: tasks with `data.text` and annotations of one choice (its `Choices` control on `Text`)."""

import json
from pathlib import Path
from typing import Any

from qianyi.data.stage import Json
from qianyi.errors import DataError
from qianyi.label.review import DECIDED, Item, Review

FROM, TO = "label", "text"
"""Names of the control and the object in the labelling configuration."""


def labelling_config(labels: tuple[str, ...]) -> str:
    """The XML that a Label Studio project needs for these tasks."""
    from xml.sax.saxutils import quoteattr  # noqa: PLC0415

    choices = "".join(f"<Choice value={quoteattr(label)}/>" for label in labels)
    return (
        f'<View><Text name="{TO}" value="$text"/><Choices name="{FROM}" toName="{TO}" choice="single">{choices}</Choices></View>'
    )


def to_studio(review: Review) -> list[Json]:
    """Tasks with one annotation for each who labelled the text, the decision marked as the ground truth."""
    return [
        {
            "data": {"text": item.text, "qianyi_id": item.id, "source": item.source},
            "annotations": [
                {"completed_by": {"email": who}, "ground_truth": who == DECIDED, "result": [_choice(labels[item.id])]}
                for who, labels in review.given.items()
                if item.id in labels
            ],
        }
        for item in review.items
    ]


def from_studio(path: Path) -> tuple[list[Item], list[tuple[str, str, str]]]:
    """Texts, and (annotator, id, label) of each annotation that is neither cancelled nor empty, in a file that Label Studio exported as
    JSON.

    Raises:
        DataError: it cannot be read, or a task has no text or a result that is no single choice.
    """
    try:
        tasks = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise DataError(f"{path}: broken JSON ({error}); export the project from Label Studio as JSON") from None
    if not isinstance(tasks, list):
        raise DataError(
            f"{path}: expected a list of tasks, found {type(tasks).__name__}; export the project as JSON, not JSON-MIN"
        )
    items, said = list[Item](), list[tuple[str, str, str]]()
    for number, task in enumerate(tasks, 1):
        where = f"{path} task {number}"
        data = task.get("data") if isinstance(task, dict) else None
        if not isinstance(data, dict) or not isinstance(data.get("text"), str):
            raise DataError(f"{where}: no text in `data.text`")
        item = Item(str(data.get("qianyi_id") or task.get("id") or number), data["text"], str(data.get("source", "")))
        items.append(item)
        for annotation in task.get("annotations", []):
            if not annotation.get("was_cancelled") and annotation.get("result"):
                said.append((_who(annotation), item.id, _label(annotation["result"], where)))
    return items, said


def import_studio(review: Review, path: Path) -> int:
    """Adds the labels of a file to a review that has its texts; how many were new.

    Raises:
        DataError: it has texts, annotators or labels that the review has not.
    """
    _, said = from_studio(path)
    new = [(who, name, label) for who, name, label in said if review.given.get(who, {}).get(name) != label]
    for who, name, label in new:
        try:
            review.label(who, name, label)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
    return len(new)


def _choice(label: str) -> Json:
    return {"from_name": FROM, "to_name": TO, "type": "choices", "value": {"choices": [label]}}


def _who(annotation: Json) -> str:
    who: Any = annotation.get("completed_by", "")
    return str(who.get("email") or who.get("id") if isinstance(who, dict) else who)


def _label(result: Any, where: str) -> str:
    choices = [choice for r in result if r.get("type") == "choices" for choice in r.get("value", {}).get("choices", [])]
    if len(choices) != 1:
        raise DataError(f"{where}: expected one choice, found {len(choices)}")
    return str(choices[0])
