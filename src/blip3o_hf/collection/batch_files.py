"""Requests and answers as files of OpenAI's Batch API, which `vllm run-batch` and others read, too."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..files import written_whole
from .endpoint import error_message, is_refusal
from .teachers import IMAGES_PATH, REFUSED, Answer, DrawingRequest, EndpointTeacher, answer_of


def batch_id(teacher: EndpointTeacher, request: DrawingRequest) -> str:
    """
    The `custom_id` of a request: the id of its prompt, and 8 digits of a hash of all that is asked, so that no answer
    of another collection, or to another text, is taken for its answer.
    """
    body = json.dumps(teacher.body(request), sort_keys=True)
    return f"{request.id}-{hashlib.sha256(body.encode()).hexdigest()[:8]}"


def write_batch(path: str | os.PathLike, teacher: EndpointTeacher, requests: Iterable[DrawingRequest]) -> None:
    """Requests as a batch, one in each line; the file appears whole."""
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for request in requests:
            line = {
                "custom_id": batch_id(teacher, request),
                "method": "POST",
                "url": f"/v1{IMAGES_PATH}",
                "body": teacher.body(request),
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def read_batch(path: str | os.PathLike, ids: Mapping[str, str]) -> Iterator[tuple[str, Answer | str]]:
    """
    The answers to a batch, in any order. The whole file is checked first; then it is read again, one line at a time.

    Args:
        path: a file of results: lines with `custom_id`, `response` and `error`.
        ids: of all prompts of the collection, by their [`batch_id`].

    Returns:
        For each line the id of the prompt, and its answer, or as text an error that another try may not get.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when a line is no answer, is cut off, is of another collection, or answers an id again.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Check the path.")
    for _ in _answers(path, ids):
        pass
    return _answers(path, ids)


def _answers(path: Path, ids: Mapping[str, str]) -> Iterator[tuple[str, Answer | str]]:
    answered: set[str] = set()
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"Line {number} of {path}"
            item = _item(line, where)
            name = item["custom_id"]
            if name not in ids:
                raise ValueError(
                    f"A batch must answer requests of this collection. {where} answers {name!r:.60}, which is none. "
                    f"Name the folder that the batch was written for, with the same --teacher, --set and --seed."
                )
            if name in answered:
                raise ValueError(f"A batch must answer each prompt once. {where} answers {name!r} again. Remove one.")
            answered.add(name)
            yield ids[name], _answer(item, where)


def _item(line: bytes, where: str) -> dict[str, Any]:
    try:
        item = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"A batch must be lines of JSON. {where} is not ({error}). Download it again.") from error
    if not isinstance(item, dict) or not isinstance(item.get("custom_id"), str):
        raise ValueError(f"An answer of a batch must have a `custom_id`. {where} has none. Is it a file of results?")
    return item


def _answer(item: Mapping[str, Any], where: str) -> Answer | str:
    response = item.get("response") if isinstance(item.get("response"), dict) else None
    if response is None and not item.get("error"):
        raise ValueError(f"An answer of a batch must have a `response` or an `error`. {where} has neither.")
    status = response.get("status_code") if response else None
    body = response.get("body") if response else item
    if status == 200 and isinstance(body, dict):
        return answer_of(body)
    if isinstance(status, int) and is_refusal(status, body):
        return Answer(problem=f"{REFUSED}: {error_message(body)[:300]}")
    return f"{status or 'error'}: {error_message(body) or error_message(item) or 'no reason'}"[:300]
