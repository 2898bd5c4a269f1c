"""The server: paths of OpenAI's API, each one from a request to an answer."""

import asyncio
import signal
import sys
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..pipelines.pipeline_blip3o import Blip3oPipeline
from ..pipelines.reconstruction import Blip3oReconstructionPipeline
from .answers import events_of_message, events_of_picture, message_of, pictures_of
from .drawing import DrawingJob, DrawingRequest, Drawn, Settings, VariationJob, picture_size
from .engine import Engine
from .errors import ApiError, wrong
from .fields import Fields, parsed
from .gate import Gate
from .metrics import Metrics
from .pictures import PictureBook, Pixels, open_picture
from .talking import Conversations, Said, Turn, TurnJob
from .waiting import Parts, Waiter

MAX_INPUT_IMAGES = 16
MAX_FORM_FIELDS = 100
MAX_CONNECTIONS = 1000


@dataclass(frozen=True)
class ServerSettings:
    """
    How a server answers.

    Args:
        name: of the model, as requests name it.
        api_keys: one of which must come with a request; with none, everybody on an allowed host may ask.
        allowed_hosts: names under which the server may be asked without a key, as
            [`~serving.guard.hosts_of_machine`] has them.
        allow_image_urls: whether pictures of messages may be fetched from public https addresses.
        max_body: bytes of a request.
        body_seconds: within which it must arrive.
        request_seconds: within which it must be answered.
        max_waiting: requests that wait for the model.
        max_batch: pictures that are drawn together.
        batch_wait: seconds that a request waits for others to be drawn with.
        conversations: that keep their keys and values.
    """

    name: str
    api_keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ("localhost",)
    allow_image_urls: bool = False
    max_body: int = 32 * 2**20
    body_seconds: float = 30.0
    request_seconds: float = 600.0
    max_waiting: int = 64
    max_batch: int = 8
    batch_wait: float = 0.01
    conversations: int = 4


class Server:
    """
    One model behind OpenAI's images and chat API.

    Args:
        pipe: what answers and draws; with a decoder and a processor.
        settings: how.
        reconstruction: the same with its target encoder, for variations.

    Raises:
        ValueError: when the pipeline has no decoder or no processor.
    """

    def __init__(
        self,
        pipe: Blip3oPipeline,
        settings: ServerSettings,
        reconstruction: Blip3oReconstructionPipeline | None = None,
    ):
        for part in ("processor", "feature_decoder"):
            if getattr(pipe, part) is None:
                raise ValueError(f"A server needs a pipeline with a {part}. This one has none. Load a whole one.")
        self.pipe, self.settings, self.reconstruction = pipe, settings, reconstruction
        self.metrics = Metrics()
        self.engine = Engine(self.metrics, settings.max_batch, settings.max_waiting, settings.batch_wait)
        self.waiter = Waiter(self.engine, settings.request_seconds)
        self.pictures = PictureBook(settings.allow_image_urls, settings.max_body)
        self.conversations = Conversations(pipe, self.pictures, settings.conversations)
        self.started = int(time.time())

    def app(self) -> Starlette:
        """The ASGI application; its life is that of the model's thread."""
        posts = {
            "/v1/images/generations": self.generations,
            "/v1/images/edits": self.edits,
            "/v1/images/variations": self.variations,
            "/v1/chat/completions": self.chat,
        }
        gets = {
            "/v1/models": self.models,
            "/v1/models/{model:path}": self.model,
            "/health": self.health,
            "/metrics": self.measurements,
        }
        settings = self.settings
        gate = Middleware(
            Gate,
            metrics=self.metrics,
            paths=[*posts, *gets],
            keys=settings.api_keys,
            hosts=settings.allowed_hosts,
            max_body=settings.max_body,
            body_seconds=settings.body_seconds,
        )
        routes = [Route(path, endpoint, methods=["POST"]) for path, endpoint in posts.items()]
        routes += [Route(path, endpoint, methods=["GET"]) for path, endpoint in gets.items()]
        app = Starlette(
            routes=routes,
            middleware=[gate],
            exception_handlers={ApiError: _told, HTTPException: _told_of_path, Exception: _failed},
            lifespan=self._life,
        )
        app.router.redirect_slashes = False
        return app

    @asynccontextmanager
    async def _life(self, app: Starlette) -> AsyncGenerator[None]:
        self.engine.start()
        yield
        await asyncio.to_thread(self.engine.close)

    async def generations(self, request: Request) -> Response:
        """Pictures of a prompt."""
        fields = Fields(parsed(await request.body()))
        self._check_model(fields)
        asked = DrawingRequest.read(fields, self.pipe)
        fields.finish()
        return await self._draw(request, asked, "image_generation")

    async def edits(self, request: Request) -> Response:
        """Pictures as a prompt changes them."""
        fields, images = await self._form(request)
        self._check_model(fields)
        fields.refused("mask", "the instruction says what changes")
        asked = DrawingRequest.read(fields, self.pipe)
        fields.finish()
        asked.images = images
        return await self._draw(request, asked, "image_edit")

    async def variations(self, request: Request) -> Response:
        """Pictures like a picture."""
        fields, images = await self._form(request)
        self._check_model(fields)
        asked = DrawingRequest.read(fields, self.pipe, has_prompt=False)
        if asked.is_streamed:
            raise wrong("stream", "false, since variations come whole", True, "Leave it out.")
        fields.refused("negative_prompt", "a variation has no prompt")
        strength = fields.number("strength", 0.01, 1)
        fields.finish()
        if self.reconstruction is None:
            raise ApiError(
                400, "Variations need the target encoder of the model. This one has none. Use /v1/images/edits."
            )
        if len(images) != 1:
            raise wrong("image", "one picture", f"{len(images)} pictures", "Send one.")
        asked.images = images
        job = VariationJob(self.reconstruction, asked, 0.6 if strength is None else strength)
        drawn: Drawn = await self.waiter.result(request, job)
        return JSONResponse(await pictures_of(self.pipe, asked, drawn))

    async def chat(self, request: Request) -> Response:
        """The next message of a conversation: words, or a picture."""
        fields = Fields(parsed(await request.body()))
        self._check_model(fields)
        turn = await Turn.read(fields, self.pipe, self.pictures)
        fields.finish()
        parts = Parts()
        job = TurnJob(self.conversations, turn, parts.put)
        identity = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.settings.name}
        if not turn.is_streamed:
            said: Said = await self.waiter.result(request, job)
            return JSONResponse(await message_of(turn, said, identity, self.pictures))
        return await self.waiter.stream(
            request, job, parts, lambda given: events_of_message(turn, identity, self.pictures, given)
        )

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, request: Request) -> Response:
        self._check_name(request.path_params["model"])
        return JSONResponse(self._card())

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def measurements(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    def _card(self) -> dict[str, Any]:
        height, width = picture_size(self.pipe, Settings())
        return {
            "id": self.settings.name,
            "object": "model",
            "created": self.started,
            "owned_by": "blip3o-hf",
            "size": f"{width}x{height}",
            "reads_images": self.pipe.model.config.has_vision,
            "settings": Settings().used(self.pipe),
        }

    def _check_model(self, fields: Fields) -> None:
        name = fields.value("model")
        if name is not None:
            self._check_name(name)

    def _check_name(self, name: Any) -> None:
        if name != self.settings.name:
            raise ApiError(
                404,
                f"`model` must be {self.settings.name!r}, the one model of this server. Got {name!r:.80}. Ask "
                f"/v1/models for its name.",
                "model",
                "model_not_found",
            )

    async def _form(self, request: Request) -> tuple[Fields, tuple[Any, ...]]:
        """The fields and the pictures of a request with files."""
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise ApiError(
                400,
                f"This path takes a form with files (multipart/form-data). Got "
                f"{request.headers.get('content-type')!r:.80}. Send the picture as a file.",
                code="bad_form",
            )
        images, values, pixels = [], {}, Pixels()
        try:
            async with request.form(
                max_files=MAX_INPUT_IMAGES, max_fields=MAX_FORM_FIELDS, max_part_size=self.settings.max_body
            ) as form:
                for name, value in form.multi_items():
                    if name in ("image", "image[]") and isinstance(value, UploadFile):
                        image = await asyncio.to_thread(open_picture, await value.read(), name)
                        images.append(pixels.count(image, name))
                    else:
                        values[name] = {"bytes": value.size} if isinstance(value, UploadFile) else value
        except UnicodeError as error:  # in the character set that the form names
            raise ApiError(
                400, "A form must be in UTF-8. This one names another character set. Leave it out.", code="bad_form"
            ) from error
        if not images:
            raise ApiError(400, "`image` must be a file. There is none. Send one, or several as image[].", "image")
        return Fields(values, are_texts=True), tuple(images)

    async def _draw(self, request: Request, asked: DrawingRequest, kind: str) -> Response:
        if not asked.is_streamed:
            drawn: Drawn = await self.waiter.result(request, DrawingJob(self.pipe, asked))
            return JSONResponse(await pictures_of(self.pipe, asked, drawn))
        parts = Parts()
        job = DrawingJob(self.pipe, asked, lambda number, image: parts.put((number, image)))
        return await self.waiter.stream(
            request, job, parts, lambda given: events_of_picture(self.pipe, asked, kind, given)
        )


async def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status, error.headers)


async def _told_of_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = {
        404: "There is no such path. This server has /v1/images/generations, /v1/images/edits, /v1/images/variations, "
        "/v1/chat/completions, /v1/models, /health and /metrics.",
        405: f"This path does not answer {request.method}. Use the other one of GET and POST.",
    }.get(error.status_code, f"The request must be a valid one. It is not: {error.detail:.200}. Check what is sent.")
    return JSONResponse(ApiError(error.status_code, message).body(), error.status_code, dict(error.headers or {}))


async def _failed(request: Request, error: Exception) -> Response:
    message = "The server failed on this request, and its log says why. Send another one."
    # uvicorn closes the connection after a failure; a client that is not told would use it again.
    return JSONResponse(ApiError(500, message, code="internal_error").body(), 500, {"Connection": "close"})


def serve(server: Server, host: str, port: int, log_level: str = "info") -> None:
    """
    Answer until the process is told to stop (SIGTERM, SIGINT); what was accepted before is finished. Call it in the
    main thread of a process that does nothing else: SIGTERM ends it, with status 0.

    Args:
        server: what answers.
        host, port: where it listens.
        log_level: of uvicorn; neither prompts nor pictures are in its log.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn sends the signal again when all is answered
    uvicorn.run(
        server.app(),
        host=host,
        port=port,
        log_level=log_level,
        limit_concurrency=MAX_CONNECTIONS,
        server_header=False,
        timeout_keep_alive=10,
    )


__all__ = ["Server", "ServerSettings", "serve"]
