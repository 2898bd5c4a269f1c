"""Requests of chats: messages in OpenAI's form, conversations that go on where they were, and answers in parts."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from PIL import Image
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TextStreamer

from ..pipelines.chat import Blip3oChat, Blip3oReply
from ..pipelines.pipeline_blip3o import Blip3oPipeline
from ..pipelines.planning import sampled
from .drawing import MAX_LETTERS, Settings, Stop, read_seed
from .engine import Job
from .errors import wrong
from .fields import Fields, checked_text
from .pictures import PictureBook, Pixels

Message = dict[str, Any]
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
MODALITIES = ("text", "image")
MAX_MESSAGES = 1000
MAX_NEW_TOKENS = 4096
"""More are asked for by clients that know larger models."""
MAX_STOPS = 4
MAX_STOP_LETTERS = 100
UNUSED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls")
NO_TOOLS = "this model calls no tools"
OF_TOKENS = "this server has no settings for single tokens"


@dataclass(frozen=True)
class Turn:
    """
    What a request of a chat says.

    Args:
        messages: before the last one, as [`Blip3oChat`] has them.
        text: of the last message, which is the user's.
        images: of it.
        modalities: what the answer may be.
        seed: of a picture, and of sampled words.
        settings: of a picture.
        max_new_tokens: of the words.
        temperature: of the words; 0 takes the likeliest ones.
        top_p: share of the likeliest words that are sampled from.
        stops: texts at which the answer ends.
        is_streamed: whether it comes in parts.
        is_usage_streamed: whether the last part counts the tokens.
    """

    messages: list[Message]
    text: str
    images: tuple[Image.Image, ...]
    modalities: tuple[str, ...]
    seed: int
    settings: Settings
    max_new_tokens: int | None
    temperature: float
    top_p: float | None
    stops: tuple[str, ...]
    is_streamed: bool
    is_usage_streamed: bool

    @classmethod
    async def read(cls, fields: Fields, pipe: Blip3oPipeline, pictures: PictureBook) -> "Turn":
        """
        A turn from the fields of a request.

        Raises:
            ApiError: when one of them breaks its contract.
        """
        messages = await _messages(fields.value("messages"), pictures)
        if messages[-1]["role"] != "user":
            raise wrong("messages", "messages whose last one is the user's", messages[-1]["role"], "Add the user's.")
        fields.integer("n", 1, 1)
        fields.ignored(*UNUSED)
        for name in ("tool_choice", "function_call"):
            if fields.value(name) not in ("none", "auto"):
                fields.refused(name, NO_TOOLS)
        for name in ("tools", "functions"):
            fields.refused(name, NO_TOOLS)
        for name in ("logprobs", "top_logprobs", "logit_bias", "frequency_penalty", "presence_penalty"):
            if fields.value(name) != 0:
                fields.refused(name, OF_TOKENS)
        form = fields.value("response_format")
        if form not in (None, {"type": "text"}):
            raise wrong("response_format", 'left out, or {"type": "text"}', form, "This model writes plain text.")
        limits = [fields.integer(name, 1, 2**31) for name in ("max_completion_tokens", "max_tokens")]
        limit = limits[0] or limits[1]
        top_p, temperature = fields.number("top_p", 0, 1), fields.number("temperature", 0, 2)
        if top_p == 0:  # the likeliest word alone
            temperature = 0.0
        elif temperature is None:
            temperature = 1.0 if top_p not in (None, 1.0) else 0.0
        options = fields.value("stream_options")
        if options is not None and not isinstance(options, dict):
            raise wrong("stream_options", "an object", options, "Leave it out.")
        text, images = parts_of(messages[-1])
        return cls(
            messages=messages[:-1],
            text=text,
            images=tuple(images),
            modalities=_modalities(fields),
            seed=read_seed(fields),
            settings=Settings.read(fields, pipe),
            max_new_tokens=None if limit is None else min(limit, MAX_NEW_TOKENS),
            temperature=temperature,
            top_p=top_p or None,
            stops=_stops(fields),
            is_streamed=bool(fields.truth("stream")),
            is_usage_streamed=bool((options or {}).get("include_usage")),
        )


def _modalities(fields: Fields) -> tuple[str, ...]:
    value = fields.value("modalities")
    if value is None:
        return MODALITIES
    if not isinstance(value, list) or not value or not all(each in MODALITIES for each in value):
        raise wrong("modalities", "a list of text, image or both", value, "Leave it out to let the model choose.")
    return tuple(value)


def _stops(fields: Fields) -> tuple[str, ...]:
    value = fields.value("stop")
    stops = [value] if isinstance(value, str) else ([] if value is None else value)
    is_list = isinstance(stops, list) and all(isinstance(stop, str) and stop for stop in stops)
    if not is_list or len(stops) > MAX_STOPS:
        raise wrong("stop", f"a text or up to {MAX_STOPS} of them", value, "Leave it out.")
    return tuple(checked_text("stop", stop, MAX_STOP_LETTERS) for stop in stops)


async def _messages(value: Any, pictures: PictureBook) -> list[Message]:
    """Messages as a conversation has them."""
    if not isinstance(value, list) or not value or len(value) > MAX_MESSAGES:
        raise wrong("messages", f"a list of 1 to {MAX_MESSAGES} messages", value, "Send what was said so far.")
    messages, pixels = [], Pixels()
    for index, message in enumerate(value):
        param = f"messages[{index}]"
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in ROLES:
            raise wrong(param, f"an object with a role ({', '.join(ROLES)})", role, "Send one of these.")
        content = await _content(_with_images(message), f"{param}.content", pictures, pixels)
        messages.append({"role": ROLES[role], "content": content})
    return messages


def _with_images(message: Mapping[str, Any]) -> Any:
    """The content of a message; where it has `images` beside it, as answers of a server have, with these in it."""
    content, images = message.get("content"), message.get("images")
    if not images or not isinstance(images, list):
        return content
    if content in (None, ""):
        return images
    return [*images, *([{"type": "text", "text": content}] if isinstance(content, str) else content)]


async def _content(value: Any, param: str, pictures: PictureBook, pixels: Pixels) -> str | list[dict[str, Any]]:
    if isinstance(value, str):
        return checked_text(param, value, MAX_LETTERS)
    if not isinstance(value, list) or not value:
        raise wrong(param, "a text, or a list of texts and pictures", value, "Send one.")
    parts: list[dict[str, Any]] = []
    for index, part in enumerate(value):
        name, kind = f"{param}[{index}]", part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            parts.append({"type": "text", "text": checked_text(name, part["text"], MAX_LETTERS)})
        elif kind == "image_url":
            url = part.get("image_url")
            url = url.get("url") if isinstance(url, dict) else url
            name = f"{name}.image_url.url"
            parts.append({"type": "image", "image": pixels.count(await pictures.open(url, name), name)})
        else:
            raise wrong(name, 'of the type "text" or "image_url"', kind, "This model reads texts and pictures.")
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def parts_of(message: Mapping[str, Any]) -> tuple[str, list[Image.Image]]:
    """The words and the pictures of a message."""
    content = message["content"]
    if isinstance(content, str):
        return content, []
    words = [part["text"] for part in content if part["type"] == "text"]
    return "\n".join(words), [part["image"] for part in content if part["type"] == "image"]


class Conversations:
    """
    Conversations by what was said in them, so that the next turn of one reads its own words only. Used in the model's
    thread alone.

    Args:
        pipe: what answers and draws.
        pictures: that messages show.
        size: how many keep their keys and values.
    """

    def __init__(self, pipe: Blip3oPipeline, pictures: PictureBook, size: int):
        self.pipe = pipe
        self.pictures = pictures
        self.size = size
        self._chats: list[Blip3oChat] = []

    def find(self, messages: Sequence[Message]) -> Blip3oChat:
        """A conversation of these messages: one that they go on from, or say the last turn of anew, or a new one."""
        known = {id(image): (request, reply) for chat in self._chats for request, reply, image in _pictures_of(chat)}
        told = _as_told(messages, known)
        chat = max((chat for chat in self._chats if _goes_on(chat.messages, told)), key=_length, default=None)
        if chat is None:
            chat = Blip3oChat(self.pipe)
        others = [other for other in self._chats if other is not chat]
        chat.messages = told
        self._chats = [chat, *others][: self.size]
        return chat


def _length(chat: Blip3oChat) -> int:
    return len(chat.messages)


def _goes_on(before: Sequence[Message], now: Sequence[Message]) -> bool:
    """Whether messages go on from others, or from all but their last turn; a common system prompt is not enough."""
    num_common = _common(before, now)
    return num_common >= len(before) - 2 and any(message["role"] != "system" for message in before[:num_common])


def _pictures_of(chat: Blip3oChat) -> list[tuple[Message, Message, Image.Image]]:
    """Each request for a picture in a conversation, the reply, and its picture."""
    pairs = zip(chat.messages, chat.messages[1:], strict=False)
    return [(request, reply, image) for request, reply in pairs if "prompt" in request for image in parts_of(reply)[1]]


def _as_told(messages: Sequence[Message], known: Mapping[int, tuple[Message, Message]]) -> list[Message]:
    """Messages with each request for a known picture as the model read it, with its instruction and its plan."""
    told: list[Message] = []
    for message in messages:
        images = parts_of(message)[1] if message["role"] == "assistant" else []
        drawn = known.get(id(images[0])) if len(images) == 1 else None
        if drawn is not None and told and parts_of(told[-1])[0] == drawn[0]["prompt"]:
            told[-1:] = drawn
        else:
            told.append(message)
    return told


def _common(first: Sequence[Message], second: Sequence[Message]) -> int:
    """How many messages two conversations begin with, pictures compared as objects."""
    pairs = zip(first, second, strict=False)
    return next((i for i, pair in enumerate(pairs) if not _is_same(*pair)), min(len(first), len(second)))


def _is_same(first: Message, second: Message) -> bool:
    (text, images), (other, others) = parts_of(first), parts_of(second)
    return (first["role"], text, *map(id, images)) == (second["role"], other, *map(id, others))


@dataclass(frozen=True)
class Said:
    """
    The answer of a turn.

    Args:
        reply: words, or a picture.
        num_read, num_written: tokens.
        is_cut: whether the words end where they had to.
        unknown_words: of the user's, that the model never read.
    """

    reply: Blip3oReply
    num_read: int
    num_written: int
    is_cut: bool
    unknown_words: list[str]


class Words(TextStreamer):
    """
    Says words as they are written, and counts tokens.

    Args:
        tokenizer: of the model.
        say: called with each part.
        stops: texts that are not said any more, and neither is what follows.
    """

    def __init__(self, tokenizer: Any, say: Callable[[str], None], stops: Sequence[str]):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.say, self.stops = say, stops
        self.num_read = self.num_written = 0
        self.last_token: int | None = None
        self.text, self.num_said = "", 0

    def put(self, value: torch.Tensor) -> None:
        if self.next_tokens_are_prompt:
            self.num_read = value.numel()
        else:
            self.num_written += value.numel()
            self.last_token = int(value.flatten()[-1])
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.text += text
        end = len(cut(self.text, self.stops))
        if not stream_end and end == len(self.text):  # the beginning of a stop may be at the end
            end -= max((len(stop) for stop in self.stops), default=1) - 1
        end = max(end, self.num_said)
        part = self.text[self.num_said : end]
        if self.num_said == 0:
            part = part.lstrip()
        if part:
            self.say(part)
            self.num_said = end


def cut(text: str, stops: Sequence[str]) -> str:
    """A text up to the first of some others."""
    return re.split("|".join(map(re.escape, stops)), text, maxsplit=1)[0] if stops else text


class TurnJob(Job):
    """
    A turn of a conversation.

    Args:
        conversations: where it is looked up.
        turn: what is asked for.
        say: called with each part of the words, in the model's thread.
    """

    kind: ClassVar[str] = "chat"

    def __init__(self, conversations: Conversations, turn: Turn, say: Callable[[str], None]):
        super().__init__()
        self.conversations, self.turn, self.say = conversations, turn, say

    @classmethod
    def run(cls, jobs: Sequence["TurnJob"]) -> list[Said]:
        (job,) = jobs
        return [job.answer()]

    def answer(self) -> Said:
        turn, pipe = self.turn, self.conversations.pipe
        chat = self.conversations.find(turn.messages)
        words = Words(pipe.processor.tokenizer, self.say, turn.stops)
        generator = torch.Generator().manual_seed(turn.seed)
        images, sampling = list(turn.images), {**turn.settings.given(), "callback_on_step_end": Stop([self])}
        if "text" not in turn.modalities:
            reply = chat.draw(turn.text, images, generator, **sampling)
        elif "image" not in turn.modalities:
            reply = chat.ask(turn.text, images, **self.generation(words, generator))
        else:
            reply = chat.send(turn.text, images, generator, sampling, **self.generation(words, generator))
        for given, kept in zip(turn.images, parts_of(chat.messages[-2])[1], strict=True):
            self.conversations.pictures.exchange(given, kept)  # the next turn shows what the conversation has read
        if reply.text is not None:
            reply = replace(reply, text=cut(reply.text, turn.stops).strip())
        is_cut = reply.image is None and words.num_written > 0 and not self.has_ended(words)
        if reply.text and not words.num_said:  # what stands for an empty answer
            self.say(reply.text)
        return Said(reply, words.num_read, words.num_written, is_cut, pipe.processor.unknown_words(turn.text))

    def has_ended(self, words: Words) -> bool:
        """Whether the model ended its words, or a stop did; a limit otherwise."""
        ends = self.conversations.pipe.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        return words.last_token in ends or cut(words.text, self.turn.stops) != words.text

    def generation(self, words: Words, generator: torch.Generator) -> dict[str, Any]:
        """Arguments of `generate`."""
        turn = self.turn
        settings: dict[str, Any] = {
            "streamer": words,
            "stopping_criteria": [
                lambda ids, scores, **_: torch.full(ids.shape[:1], self.is_cancelled, device=ids.device)
            ],
        }
        if turn.max_new_tokens is not None:
            settings["max_new_tokens"] = turn.max_new_tokens
        if turn.temperature > 0:
            warper = TemperatureLogitsWarper(turn.temperature)
            settings["logits_processor"] = LogitsProcessorList([warper, *sampled([generator], turn.top_p)])
        if turn.stops:
            settings |= {"stop_strings": list(turn.stops), "tokenizer": self.conversations.pipe.processor.tokenizer}
        return settings


__all__ = ["Conversations", "Said", "Turn", "TurnJob"]
