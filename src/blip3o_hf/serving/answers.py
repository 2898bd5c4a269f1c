"""Answers in OpenAI's form: pictures and messages, whole and as events."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from PIL import Image

from ..pipelines.pipeline_blip3o import Blip3oPipeline
from .drawing import DrawingRequest, Drawn
from .pictures import Encoding, PictureBook
from .talking import Said, Turn


def event_of(content: dict[str, Any], is_named: bool = True) -> bytes:
    """A server-sent event; a named one has the name of its type."""
    name = f"event: {content['type']}\n" if is_named else ""
    return f"{name}data: {json.dumps(content, separators=(',', ':'))}\n\n".encode()


async def pictures_of(pipe: Blip3oPipeline, request: DrawingRequest, drawn: Drawn) -> dict[str, Any]:
    """
    The answer to a request for pictures. Beside OpenAI's fields, each picture says its `seed`, how often it was drawn
    and whether the model found it right, and the answer says with which `settings`.
    """
    return await asyncio.to_thread(_pictures, pipe, request, drawn)


def _pictures(pipe: Blip3oPipeline, request: DrawingRequest, drawn: Drawn) -> dict[str, Any]:
    pictures = []
    for index, image in enumerate(drawn.images):
        picture: dict[str, Any] = {"b64_json": request.encoding.encode(image), "seed": request.seed + index}
        if drawn.plans is not None:
            picture["revised_prompt"] = drawn.plans[index]
        if drawn.attempts is not None and drawn.accepted is not None:
            picture |= {"attempts": drawn.attempts[index], "accepted": bool(drawn.accepted[index])}
        pictures.append(picture)
    num_read, num_drawn = drawn.num_tokens, len(drawn.images) * pipe.model.config.num_queries
    return {
        "created": int(time.time()),
        "data": pictures,
        **_shape(request, drawn.images[0]),
        "settings": request.settings.used(pipe),
        "unknown_words": drawn.unknown_words,
        "usage": {
            "input_tokens": num_read,
            "output_tokens": num_drawn,
            "total_tokens": num_read + num_drawn,
            "input_tokens_details": {"text_tokens": num_read, "image_tokens": 0},
        },
    }


def _shape(request: DrawingRequest, image: Image.Image) -> dict[str, str]:
    """What an answer says of the form of its pictures."""
    return {
        "background": "opaque",
        "output_format": request.encoding.format,
        "quality": "auto",
        "size": "x".join(map(str, image.size)),
    }


async def events_of_picture(
    pipe: Blip3oPipeline, request: DrawingRequest, kind: str, given: AsyncIterator[Any]
) -> AsyncIterator[bytes]:
    """
    Events of a picture while it is drawn.

    Args:
        pipe: that draws.
        request: for one picture.
        kind: of the events: `image_generation` or `image_edit`.
        given: numbers and drafts, and then what was drawn.
    """
    async for part in given:
        if isinstance(part, Drawn):
            whole = await pictures_of(pipe, request, part)
            (picture,) = whole.pop("data")
            yield event_of({"type": f"{kind}.completed", **picture, **whole, "created_at": whole["created"]})
        else:
            number, image = part
            yield event_of(
                {
                    "type": f"{kind}.partial_image",
                    "b64_json": await asyncio.to_thread(request.encoding.encode, image),
                    "partial_image_index": number,
                    "created_at": int(time.time()),
                    **_shape(request, image),
                }
            )


async def message_of(turn: Turn, said: Said, identity: dict[str, Any], pictures: PictureBook) -> dict[str, Any]:
    """
    The answer to a turn of a conversation. Its words are the content, and its picture is beside them, so that clients
    of words alone can read every answer.
    """
    message: dict[str, Any] = {"role": "assistant", "content": said.reply.text or ""}
    if said.reply.image is not None:
        message["images"] = [await _part_of(said, pictures)]
    choice = {"index": 0, "message": message, "finish_reason": _reason(said)}
    return {
        "object": "chat.completion",
        **identity,
        "choices": [choice],
        "usage": _usage(said),
        **_beside(turn, said),
    }


async def events_of_message(
    turn: Turn, identity: dict[str, Any], pictures: PictureBook, given: AsyncIterator[Any]
) -> AsyncIterator[bytes]:
    """Events of a message while it is written: parts of the words, and then what was said."""

    def chunk(delta: dict[str, Any], reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return event_of({"object": "chat.completion.chunk", **identity, "choices": [choice], **more}, is_named=False)

    yield chunk({"role": "assistant", "content": ""})
    async for part in given:
        if not isinstance(part, Said):
            yield chunk({"content": part})
            continue
        if part.reply.image is not None:
            yield chunk({"content": "", "images": [await _part_of(part, pictures)]})
        yield chunk({}, _reason(part), **_beside(turn, part))
        if turn.is_usage_streamed:
            event = {"object": "chat.completion.chunk", **identity, "choices": [], "usage": _usage(part)}
            yield event_of(event, is_named=False)
    yield b"data: [DONE]\n\n"


async def _part_of(said: Said, pictures: PictureBook) -> dict[str, Any]:
    assert said.reply.image is not None  # callers have asked
    url = await asyncio.to_thread(pictures.written, said.reply.image, Encoding())
    return {"type": "image_url", "image_url": {"url": url}}


def _reason(said: Said) -> str:
    return "length" if said.is_cut else "stop"


def _usage(said: Said) -> dict[str, int]:
    return {
        "prompt_tokens": said.num_read,
        "completion_tokens": said.num_written,
        "total_tokens": said.num_read + said.num_written,
    }


def _beside(turn: Turn, said: Said) -> dict[str, Any]:
    """What the answer says beside OpenAI's fields: words that the model never read, and how it drew a picture."""
    reply, words = said.reply, {"unknown_words": said.unknown_words}
    if reply.image is None:
        return words
    return {**words, "seed": turn.seed, "plan": reply.plan, "attempts": reply.attempts, "score": reply.score}


__all__ = ["event_of", "events_of_message", "events_of_picture", "message_of", "pictures_of"]
