"""Our models as lmms-eval runs them. Only lmms-eval, and what uses it, imports this module."""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from tqdm import tqdm

from ..checks import check_sizes
from ..data.images import as_input_image
from .chat_answers import SETTINGS, ChatAnswerer

MAX_ROUNDS = 100
"""After which a task of several rounds, which says itself when it ends, is stopped."""
_logger = logging.getLogger(__name__)


class Blip3oLmms(lmms):
    """
    A BLIP3-o in lmms-eval, which answers in words. A chat model: tasks hand it messages, all at once; it answers those
    with equal settings in batches, and returns the answers in the order of the requests.

    Args:
        pretrained: packaged name, folder or Hub id of a BLIP3-o.
        batch_size: conversations at once.
        device: where it computes; by default the accelerator of this process, where there is one.
        dtype: of the weights, such as `bfloat16`; `auto` is that of the files.
        max_new_tokens: of an answer, where a task does not say.

    Raises:
        ValueError: when an argument has a value that is not possible.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "blip3o-tiny",
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str = "auto",
        max_new_tokens: int = 128,
    ):
        super().__init__()
        self.batch_size = _whole_number("batch_size", batch_size)
        self.max_new_tokens = _whole_number("max_new_tokens", max_new_tokens)
        self._rank, self._world_size = (int(os.environ.get(name, of)) for name, of in (("RANK", 0), ("WORLD_SIZE", 1)))
        self.device = _device() if device is None else torch.device(device)
        self.answerer = self._load(pretrained, dtype)

    def _load(self, pretrained: str, dtype: str) -> ChatAnswerer:
        return ChatAnswerer.load(pretrained, dtype, self.device)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answers to requests with the arguments (context, doc_to_messages, settings, doc_id, task, split)."""
        answers = {}
        for turn, answer in self._answered([self._first_turn(*each) for each in enumerate(requests)], "answering"):
            answers[turn.index] = answer
            self.cache_hook.add_partial("generate_until", (requests[turn.index].args[0], turn.settings), answer)
        return [answers[index] for index in range(len(requests))]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """
        As `generate_until`, for tasks that ask again after each answer until they have enough.

        Returns:
            Of each request the answers of all its rounds.

        Raises:
            ValueError: when a task does not end.
        """
        said: list[list[str]] = [[] for _ in requests]
        turns = [self._first_turn(*each) for each in enumerate(requests)]
        for number in range(1, MAX_ROUNDS + 1):
            for turn, answer in self._answered(turns, f"round {number}"):
                said[turn.index] = [*said[turn.index], answer]
            nexts = [self._next_turn(turn, requests[turn.index], number, said) for turn in turns]
            turns = [turn for turn in nexts if turn is not None]
            if not turns:
                break
        else:
            raise ValueError(f"A task must end within {MAX_ROUNDS} rounds. {turns[0].address} does not. Correct it.")
        for request, answers in zip(requests, said, strict=True):
            self.cache_hook.add_partial("generate_until_multi_round", (request.args[0], request.args[2]), answers)
        return said

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """
        Refused: lmms-eval hands likelihoods to simple models only, whose requests have no messages.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"blip3o answers tasks of the output type generate_until. {len(requests)} requests want likelihoods. "
            f"Choose the variant of the task that generates."
        )

    def _first_turn(self, index: int, request: Any) -> "_Turn":
        if len(request.args) != 6 or not callable(request.args[1]):
            raise ValueError(
                f"A request to a chat model has (context, doc_to_messages, settings, doc_id, task, split). Got "
                f"{len(request.args)} arguments ({request.request_type}). Choose a task of the type generate_until."
            )
        _, doc_to_messages, settings, doc_id, task, _ = request.args
        return _Turn(
            index, f"{task}, document {doc_id}", dict(settings or {}), lambda: doc_to_messages(self._document(request))
        )

    def _next_turn(self, turn: "_Turn", request: Any, number: int, said: list[list[str]]) -> "_Turn | None":
        """What a task asks after round `number`; `None` where it has enough. It may replace what was said."""
        payload = request.args[1](
            self._document(request),
            round_idx=number,
            previous_output=list(said[turn.index]),
            previous_round_info=turn.info,
        )
        if not isinstance(payload, tuple) or len(payload) != 4:
            return None  # a task of one round
        messages, is_end, outputs, info = payload
        if outputs is not None:
            said[turn.index] = list(outputs)
        return None if is_end else _Turn(turn.index, turn.address, turn.settings, lambda: messages, info)

    def _document(self, request: Any) -> Any:
        _, _, _, doc_id, task, split = request.args
        return self.task_dict[task][split][doc_id]

    def _answered(self, turns: Sequence["_Turn"], label: str) -> Iterator[tuple["_Turn", str]]:
        """The turns with their answers, as they come; the images of one batch are in memory at once."""
        with tqdm(total=len(turns), desc=label, disable=self.rank != 0) as bar:
            for batch in _batches(turns, self.batch_size):
                settings = generate_settings(batch[0].settings, self.max_new_tokens)
                texts = self.answerer([turn.conversation() for turn in batch], **settings)
                for turn, text in zip(batch, texts, strict=True):
                    yield turn, cut_at(text, turn.settings.get("until"))
                bar.update(len(batch))


class Blip3oBackboneLmms(Blip3oLmms):
    """
    The bare backbone of a BLIP3-o in lmms-eval, run by its own `generate`, and otherwise in the same way. With a
    frozen backbone its answers are those of the BLIP3-o.

    Args:
        weights: folder or Hub id of the backbone before BLIP3-o was trained on it, such as
            `Qwen/Qwen2.5-VL-7B-Instruct`; by default the backbone that is in the BLIP3-o.
        arguments: of [`Blip3oLmms`].
    """

    def __init__(self, pretrained: str = "blip3o-tiny", weights: str | None = None, **arguments: Any):
        self.weights = weights
        super().__init__(pretrained, **arguments)

    def _load(self, pretrained: str, dtype: str) -> ChatAnswerer:
        return ChatAnswerer.load_backbone(pretrained, self.weights, dtype, self.device)


@dataclass(frozen=True)
class _Turn:
    """
    One answer that is asked for.

    Args:
        index: of its request.
        address: its task and document, for errors.
        settings: of its task.
        messages: gives them; they may hold images, so it is called when they are needed.
        info: what the task handed on from the round before.
    """

    index: int
    address: str
    settings: dict[str, Any]
    messages: Callable[[], list]
    info: Any = None

    def conversation(self) -> list[dict[str, Any]]:
        """
        The messages with images in RGB.

        Raises:
            ValueError: when an image cannot be read, or a video or sound is shown.
        """
        conversation = ChatMessages(messages=self.messages()).to_hf_messages()
        for message in conversation:
            for item in message["content"]:
                if item["type"] not in ("text", "image"):
                    raise ValueError(
                        f"blip3o reads text and images. {self.address} shows {item['type']}. Leave the task out."
                    )
                if item["type"] == "image":
                    try:
                        item["image"] = as_input_image(item["image"])
                    except (ValueError, TypeError) as error:
                        raise ValueError(f"{self.address}: {error}") from error
        return conversation


def _batches(turns: Sequence[_Turn], size: int) -> Iterator[list[_Turn]]:
    """Turns with equal settings, at most `size` at a time."""
    groups: dict[str, list[_Turn]] = {}
    for turn in turns:
        groups.setdefault(json.dumps(turn.settings, sort_keys=True, default=str), []).append(turn)
    for group in groups.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]


def generate_settings(settings: Mapping[str, Any], max_new_tokens: int) -> dict[str, Any]:
    """
    A task's settings as `generate` takes them. A temperature of 0 means greedy, one above 0 means sampling unless
    `do_sample` says no; what `generate` does not know, such as `image_aspect_ratio`, is left out with a warning.

    Args:
        settings: of a task.
        max_new_tokens: where it does not say.
    """
    known = {name: value for name, value in settings.items() if name in SETTINGS and value is not None}
    for name in sorted(settings.keys() - SETTINGS - {"until"}):
        _warn_left_out(name)
    temperature = known.get("temperature")
    known["do_sample"] = bool(known.get("do_sample", temperature is not None and temperature > 0)) and temperature != 0
    if not known["do_sample"]:
        known = {name: value for name, value in known.items() if name not in ("temperature", "top_p", "top_k")}
    return {"max_new_tokens": max_new_tokens, **known}


_left_out: set[str] = set()


def _warn_left_out(name: str) -> None:
    if name not in _left_out:
        _left_out.add(name)
        _logger.warning("a task sets %r, which is no setting of `generate`; it has no effect on blip3o", name)


def cut_at(text: str, until: str | Sequence[str] | None) -> str:
    """
    The text before the first of the words at which a task stops an answer. lmms-eval adds an empty line to tasks that
    name none; its own models of chat do not stop there, so that answers of several paragraphs stay whole.
    """
    words = [until] if isinstance(until, str) else list(until or ())
    ends = [position for word in words if word.strip("\n") and (position := text.find(word)) >= 0]
    return text[: min(ends)].rstrip() if ends else text


def _whole_number(name: str, value: int | str) -> int:
    """lmms-eval hands numbers on as words, too."""
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    check_sizes(**{name: number})
    return int(number)


def _device() -> torch.device:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return torch.device("cpu")
    return torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", 0)))
