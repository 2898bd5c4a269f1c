"""Requests and answers as files of OpenAI's Batch API, which `vllm run-batch` and others read, too."""

import json
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import written_whole
from .endpoint import error_message, is_refusal
from .teachers import IMAGES_PATH, REFUSED, Answer, DrawingRequest, EndpointTeacher, answer_of


@dataclass
class BatchAnswers:
    """
    What a file of answers holds.

    Attributes:
        answers: by id.
        failed: ids that got an error that another try may not get, with what it says.
    """

    answers: dict[str, Answer] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def write_batch(path: str | os.PathLike, teacher: EndpointTeacher, requests: Iterable[DrawingRequest]) -> None:
    """Requests as a batch, one in each line; the file appears whole."""
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for request in requests:
            line = {
                "custom_id": request.id,
                "method": "POST",
                "url": f"/v1{IMAGES_PATH}",
                "body": teacher.body(request),
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def read_batch(path: str | os.PathLike, ids: Collection[str]) -> BatchAnswers:
    """
    The answers to a batch, in any order.

    Args:
        path: a file of results: lines with `custom_id`, `response` and `error`.
        ids: of all prompts of the collection.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when a line is no answer, is cut off, is of another collection, or answers an id again.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Check the path.")
    found = BatchAnswers()
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"Line {number} of {path}"
            item = _item(line, where)
            name = item["custom_id"]
            if name not in ids:
                raise ValueError(
                    f"A batch must answer prompts of this collection. {where} answers {name!r:.60}, which is none. "
                    f"Name the folder that the batch was written for."
                )
            if name in found.answers or name in found.failed:
                raise ValueError(f"A batch must answer each prompt once. {where} answers {name!r} again. Remove one.")
            _take(found, name, item, where)
    return found


def _item(line: bytes, where: str) -> dict[str, Any]:
    try:
        item = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"A batch must be lines of JSON. {where} is not ({error}). Download it again.") from error
    if not isinstance(item, dict) or not isinstance(item.get("custom_id"), str):
        raise ValueError(f"An answer of a batch must have a `custom_id`. {where} has none. Is it a file of results?")
    return item


def _take(found: BatchAnswers, name: str, item: dict[str, Any], where: str) -> None:
    response = item.get("response") if isinstance(item.get("response"), dict) else None
    if response is None and not item.get("error"):
        raise ValueError(f"An answer of a batch must have a `response` or an `error`. {where} has neither.")
    status = response.get("status_code") if response else None
    body = response.get("body") if response else item
    if status == 200 and isinstance(body, dict):
        found.answers[name] = answer_of(body)
    elif isinstance(status, int) and is_refusal(status, body):
        found.answers[name] = Answer(problem=f"{REFUSED}: {error_message(body)[:300]}")
    else:
        found.failed[name] = f"{status or 'error'}: {error_message(body) or error_message(item) or 'no reason'}"[:300]
