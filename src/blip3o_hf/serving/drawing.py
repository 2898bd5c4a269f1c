"""Requests for pictures: what they ask for, how it is drawn in batches, and the answer."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from PIL import Image

from ..pipelines.pipeline_blip3o import Blip3oPipeline
from ..pipelines.reconstruction import Blip3oReconstructionPipeline
from .engine import Job
from .errors import wrong
from .fields import Fields
from .pictures import MAX_IMAGES, MIME_TYPES, Encoding

MAX_LETTERS = 32_000
"""Of a prompt, as OpenAI has it."""
MAX_SEED = 2**53 - 1 - MAX_IMAGES
"""JSON of browsers counts so far."""
MAX_STEPS = 200
MAX_SIDE = 2048
UNUSED = ("user", "quality", "style", "moderation", "safety_identifier", "input_fidelity", "prompt_cache_key")
"""Fields of OpenAI's API that say nothing to this model."""


@dataclass(frozen=True)
class Settings:
    """
    What a pipeline is told beside the prompt; requests with equal settings are drawn together.

    Args:
        num_inference_steps, guidance_scale, plan, num_attempts: of the pipeline.
        decoder_num_inference_steps, decoder_guidance_scale, height, width: of its diffusion decoder.
    """

    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    plan: bool | None = None
    num_attempts: int | None = None
    decoder_num_inference_steps: int | None = None
    decoder_guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None

    @classmethod
    def read(cls, fields: Fields, pipe: Blip3oPipeline) -> "Settings":
        """Those of a request."""
        height, width = _size(fields, pipe)
        return cls(
            num_inference_steps=fields.integer("num_inference_steps", 1, MAX_STEPS),
            guidance_scale=fields.number("guidance_scale", 0, 100),
            plan=fields.truth("plan"),
            num_attempts=fields.integer("num_attempts", 1, 16),
            decoder_num_inference_steps=fields.integer("decoder_num_inference_steps", 1, MAX_STEPS),
            decoder_guidance_scale=fields.number("decoder_guidance_scale", 0, 100),
            height=height,
            width=width,
        )

    def given(self) -> dict[str, Any]:
        """Those that are not left to the model."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def used(self, pipe: Blip3oPipeline) -> dict[str, Any]:
        """What a picture is drawn with, for its answer."""
        config = pipe.config
        names = ("num_inference_steps", "guidance_scale", "plan", "num_attempts")
        defaults = {name: config[f"default_{name}"] for name in names}
        return {**defaults, **self.given()}


def picture_size(pipe: Blip3oPipeline, settings: Settings) -> tuple[int, int]:
    """Height and width of a picture in pixels."""
    decoder = pipe.feature_decoder
    assert decoder is not None  # a server has one
    features = torch.empty(1, *pipe.feature_shape, device="meta")
    return decoder.image_size(features, **decoder.taken({"height": settings.height, "width": settings.width}))


def _size(fields: Fields, pipe: Blip3oPipeline) -> tuple[int | None, int | None]:
    text = fields.text("size", 20)
    if text in (None, "auto"):
        return None, None
    words = text.lower().split("x")
    if len(words) != 2 or not all(word.isdecimal() and 0 < int(word) <= MAX_SIDE for word in words):
        raise wrong("size", f"auto, or WIDTHxHEIGHT of at most {MAX_SIDE}", text, "Send auto.")
    width, height = map(int, words)
    own_height, own_width = picture_size(pipe, Settings())
    if (height, width) == (own_height, own_width):
        return None, None
    assert pipe.feature_decoder is not None
    if "height" not in pipe.feature_decoder.settings:
        raise wrong("size", f"auto or {own_width}x{own_height}, the only size of this model", text, "Send auto.")
    return height, width


@dataclass
class DrawingRequest:
    """
    What a request for pictures says.

    Args:
        prompt: what to draw, or what to change.
        num_images: how many.
        seed: of the first picture; the next ones have the next seeds.
        settings: of the pipeline.
        negative_prompt: what guidance leads away from.
        images: to change.
        encoding: of the answer.
        is_streamed: whether it comes as events.
        num_partial: pictures to send while it is drawn.
    """

    prompt: str
    num_images: int
    seed: int
    settings: Settings
    negative_prompt: str | None = None
    images: tuple[Image.Image, ...] = ()
    encoding: Encoding = field(default_factory=Encoding)
    is_streamed: bool = False
    num_partial: int = 0

    @classmethod
    def read(cls, fields: Fields, pipe: Blip3oPipeline, has_prompt: bool = True) -> "DrawingRequest":
        """
        A request from its fields.

        Raises:
            ApiError: when one of them breaks its contract.
        """
        prompt = fields.text("prompt", MAX_LETTERS, required=True) if has_prompt else None
        if fields.choice("response_format", ("b64_json", "url")) == "url":
            raise wrong("response_format", "b64_json, since no picture is kept here", "url", "Leave it out.")
        fields.choice("background", ("auto", "opaque"))
        form = fields.choice("output_format", MIME_TYPES, "png") or "png"
        compression = fields.integer("output_compression", 0, 100, 100)
        assert compression is not None
        fields.ignored(*UNUSED)
        request = cls(
            prompt=prompt or "",
            num_images=fields.integer("n", 1, MAX_IMAGES, 1) or 1,
            seed=read_seed(fields),
            settings=Settings.read(fields, pipe),
            negative_prompt=fields.text("negative_prompt", MAX_LETTERS) or None,
            encoding=Encoding(form, compression),
            is_streamed=bool(fields.truth("stream")),
            num_partial=fields.integer("partial_images", 0, 3, 0) or 0,
        )
        if request.num_partial and not request.is_streamed:
            raise wrong("partial_images", "0 without stream", request.num_partial, "Send stream: true, too.")
        if request.is_streamed and request.num_images > 1:
            raise wrong("n", "1 in a stream", request.num_images, "Ask for one picture, or leave `stream` out.")
        return request


def read_seed(fields: Fields) -> int:
    """The seed of a request, or a new one."""
    seed = fields.integer("seed", 0, MAX_SEED)
    return secrets.randbelow(2**31) if seed is None else seed


@dataclass(frozen=True)
class Drawn:
    """
    What was drawn for a request; one entry for each picture.

    Args:
        images: the pictures.
        plans: what the model wrote before, where it did.
        attempts: how often it drew, where it looked.
        accepted: whether it found its picture right, where it looked.
        num_tokens: of the prompt.
        unknown_words: of the prompt, that the model never read.
    """

    images: list[Image.Image]
    plans: list[str] | None
    attempts: list[int] | None
    accepted: list[bool] | None
    num_tokens: int = 0
    unknown_words: list[str] = field(default_factory=list)


class DrawingJob(Job):
    """
    A request for pictures.

    Args:
        pipe: what draws.
        request: what to draw.
        show (*optional*): called with the number and the picture of each draft, in the model's thread.
    """

    kind: ClassVar[str] = "draw"

    def __init__(
        self,
        pipe: Blip3oPipeline,
        request: DrawingRequest,
        show: Callable[[int, Image.Image], None] | None = None,
    ):
        super().__init__()
        self.pipe, self.request, self.show = pipe, request, show
        self.rows = request.num_images
        self.key = (self.kind, request.settings, bool(request.images), request.negative_prompt is not None)

    def draft_due(self, step: int, num_steps: int) -> int | None:
        """The number of the draft to show at a step, if one is due: they are spread over the steps."""
        parts = self.request.num_partial + 1
        due = [max(2, num_steps * part // parts) for part in range(1, parts)]
        return due.index(step) if step in due else None

    @classmethod
    def run(cls, jobs: Sequence["DrawingJob"]) -> list[Drawn]:
        pipe, requests = jobs[0].pipe, [job.request for job in jobs]
        rows = [(request, index) for request in requests for index in range(request.num_images)]
        has_images, is_negative = bool(requests[0].images), requests[0].negative_prompt is not None
        output = pipe(
            [request.prompt for request, _ in rows],
            image=[list(request.images) for request, _ in rows] if has_images else None,
            negative_prompt=[str(request.negative_prompt) for request, _ in rows] if is_negative else None,
            generator=[torch.Generator().manual_seed(request.seed + index) for request, index in rows],
            callback_on_step_end=Watch(jobs),
            **requests[0].settings.given(),
        )
        drawn, first = [], 0
        for request, length in zip(requests, lengths(pipe, requests), strict=True):
            part = slice(first, first + request.num_images)
            drawn.append(
                Drawn(
                    output.images[part],
                    *(
                        None if values is None else list(values[part])
                        for values in (output.plans, output.attempts, output.accepted)
                    ),
                    num_tokens=length,
                    unknown_words=pipe.processor.unknown_words(request.prompt),
                )
            )
            first += request.num_images
        return drawn


class Stop:
    """
    A callback of the pipeline: leaves out the remaining steps when nobody waits any more.

    Args:
        jobs: that are computed together.
    """

    def __init__(self, jobs: Sequence[Job]):
        self.jobs = jobs

    def __call__(self, pipe: Blip3oPipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if all(job.is_cancelled for job in self.jobs):
            pipe._interrupt = True
        return {}


class Watch(Stop):
    """Also shows drafts to those who want them."""

    jobs: Sequence[DrawingJob]

    def __init__(self, jobs: Sequence[DrawingJob]):
        super().__init__(jobs)
        self.states: list[torch.Tensor] = []
        """The last two, at `levels`."""
        self.levels: list[float] = []
        self.is_first_attempt = True

    def __call__(self, pipe: Blip3oPipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        super().__call__(pipe, step, timestep, tensors)
        if step == 0:
            self.is_first_attempt = not self.states
            self.states, self.levels = [], []
        # What the step before made is at the level at which this one began.
        self.levels = [*self.levels, float(timestep) / pipe.scheduler.config.num_train_timesteps][-2:]
        if self.is_first_attempt and len(self.states) == 2:
            self.show(pipe, step)
        self.states = [*self.states, tensors["latents"]][-2:]
        return {}

    def show(self, pipe: Blip3oPipeline, step: int) -> None:
        """Send each job the draft that is due, if one is."""
        images, first, num_steps = None, 0, pipe.num_timesteps or 0
        for job in self.jobs:
            number = job.draft_due(step, num_steps)
            if job.show is not None and number is not None:
                images = drafts(pipe, self.states, self.levels) if images is None else images
                job.show(number, images[first])
            first += job.rows


def drafts(pipe: Blip3oPipeline, states: Sequence[torch.Tensor], levels: Sequence[float]) -> list[Image.Image]:
    """Where the line through two states `[N, C, h, w]` at two noise levels ends, as pictures."""
    velocity = (states[1] - states[0]) / (levels[1] - levels[0])
    features = pipe.model.denormalize_features(states[1] - levels[1] * velocity)
    return pipe.image_processor.postprocess(pipe.decode_features(features), output_type="pil")


class VariationJob(Job):
    """
    A request for pictures like a picture.

    Args:
        pipe: what draws, with its target encoder.
        request: how.
        strength: noise level in (0, 1] that the picture starts from.
    """

    kind: ClassVar[str] = "vary"

    def __init__(self, pipe: Blip3oReconstructionPipeline, request: DrawingRequest, strength: float):
        super().__init__()
        self.pipe, self.request, self.strength = pipe, request, strength
        self.rows = request.num_images

    @classmethod
    def run(cls, jobs: Sequence["VariationJob"]) -> list[Drawn]:
        (job,) = jobs
        request = job.request
        output = job.pipe.vary(
            request.images[0],
            strength=job.strength,
            num_images=request.num_images,
            generator=[torch.Generator().manual_seed(request.seed + index) for index in range(request.num_images)],
            callback_on_step_end=Stop(jobs),
            **request.settings.given(),
        )
        assert isinstance(output.images, list)
        return [Drawn(output.images, output.plans, None, None)]


def lengths(pipe: Blip3oPipeline, requests: Sequence[DrawingRequest]) -> list[int]:
    """Tokens of their prompts."""
    return [len(ids) for ids in pipe.processor.tokenizer([request.prompt for request in requests])["input_ids"]]


__all__ = [
    "DrawingJob",
    "DrawingRequest",
    "Drawn",
    "Settings",
    "Stop",
    "VariationJob",
    "picture_size",
    "read_seed",
]
