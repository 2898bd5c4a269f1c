"""Who draws the pictures: any pipeline, any OpenAI-compatible endpoint, or a class of your own."""

import base64
import binascii
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Protocol

from PIL import Image

from .asking import Asking
from .endpoint import REJECTED, Endpoint, Refused, Rejected

TEACHERS = {"shapes": "blip3o_hf.shapes.teacher:ShapesTeacher"}
"""Classes of teachers that have a short name."""
IMAGES_PATH = "/images/generations"
REFUSED = "refused by the teacher"
UNSAFE = "the safety checker of the pipeline"
SENT = ("model", "prompt", "n", "generator", "num_images_per_prompt")
"""Settings of a request that a collection decides: what is drawn, with which seed, and one picture each."""


@dataclass(frozen=True)
class DrawingRequest:
    """
    One picture to draw.

    Args:
        id: of its prompt.
        prompt: what it is to show.
        seed: of its noise; it depends on the number of the prompt alone.
    """

    id: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class Answer:
    """
    What a teacher gives for one request: an encoded picture, or why there is none.

    Args:
        data: the encoded picture.
        problem: why there is none.
        notes: what else the teacher says, such as `revised_prompt`.
    """

    data: bytes | None = None
    problem: str | None = None
    notes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        if (self.data is None) == (self.problem is None):
            raise ValueError("An answer must be a picture or a problem. Got both or neither. Give one.")

    @property
    def is_billed(self) -> bool:
        """Whether it counts as a picture that was paid for: all that was neither refused nor rejected."""
        return not (self.problem or "").startswith((REFUSED, REJECTED))

    @classmethod
    def of_image(cls, image: Image.Image) -> "Answer":
        """A picture of a teacher on this machine, as PNG."""
        file = io.BytesIO()
        image.save(file, format="PNG")
        return cls(file.getvalue())


class Teacher(Protocol):
    """Draws pictures."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that decides its pictures, in JSON's types; it is written into every manifest."""
        ...

    @property
    def group_size(self) -> int:
        """
        So many requests are drawn by one call, always the same ones, since pictures may depend on what is drawn beside
        them; 0 where each is drawn alone.
        """
        ...

    def draw(self, requests: Sequence[DrawingRequest]) -> Iterable[tuple[str, Answer]]:
        """For each request its id and answer, in any order; what is given is kept at once."""
        ...


def _options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """
    Raises:
        ValueError: when one of them is in [`SENT`].
    """
    taken = next((name for name in options or {} if name in SENT), None)
    if taken is not None:
        raise ValueError(
            f"A collection decides {', '.join(SENT)} itself, one picture for each prompt. Got {taken!r} as a setting "
            f"of the teacher. Leave it out."
        )
    return dict(options or {})


class PipelineTeacher:
    """
    Any pipeline of diffusers that draws from text, or our own.

    Args:
        pipe: called with `prompt`, `generator` and `options`.
        name: of the pipeline, for manifests.
        options: further arguments of the call, such as `num_inference_steps`.
        group_size: prompts in one call.

    Raises:
        ValueError: when an option is in [`SENT`].
    """

    def __init__(self, pipe: Any, name: str, options: Mapping[str, Any] | None = None, group_size: int = 8):
        self.pipe = pipe
        self.group_size = group_size
        self.options = _options(options)
        self.settings = {
            "kind": "pipeline",
            "class": type(pipe).__name__,
            "model": name,
            "options": self.options,
            "group_size": group_size,
        }

    def draw(self, requests: Sequence[DrawingRequest]) -> Iterator[tuple[str, Answer]]:
        import torch

        generators = [torch.Generator().manual_seed(request.seed) for request in requests]
        prompts = [request.prompt for request in requests]
        drawn = self.pipe(prompt=prompts, generator=generators, **self.options)
        unsafe = getattr(drawn, "nsfw_content_detected", None) or [False] * len(requests)
        for request, image, is_unsafe in zip(requests, drawn.images, unsafe, strict=True):
            # In place of what its safety checker refuses, a pipeline gives a black picture.
            answer = Answer(problem=f"{REFUSED}: {UNSAFE}") if is_unsafe else Answer.of_image(image)
            yield request.id, answer


class EndpointTeacher:
    """
    An OpenAI-compatible endpoint that draws.

    Args:
        model: its name there.
        endpoint (*optional*): without one, requests can only be written into a batch.
        options: further keys of the body, such as `size` and `quality`; the value `"{seed}"` becomes the seed.
        at_once: requests that wait for an answer at the same time.

    Raises:
        ValueError: when an option is in [`SENT`].
    """

    group_size = 0

    def __init__(
        self,
        model: str,
        endpoint: Endpoint | None = None,
        options: Mapping[str, Any] | None = None,
        at_once: int = 8,
    ):
        self.model = model
        self.endpoint = endpoint
        self.at_once = at_once
        self.options = _options(options)
        address = "batch" if endpoint is None else endpoint.base_url
        self.settings = {"kind": "openai", "model": model, "base_url": address, "options": self.options}

    def body(self, request: DrawingRequest) -> dict[str, Any]:
        """The body of a request."""
        options = {key: request.seed if value == "{seed}" else value for key, value in self.options.items()}
        return {"model": self.model, "prompt": request.prompt, "n": 1, **options}

    def draw(self, requests: Sequence[DrawingRequest]) -> Iterator[tuple[str, Answer]]:
        """As [`Teacher`]; what an error or an interruption leaves is said in [`Asking.results`]."""
        assert self.endpoint is not None
        named = ((f"prompt {request.id}", request) for request in requests)
        with closing(Asking(self.endpoint, self._ask, named, self.at_once).results()) as results:
            for name, found in results:
                is_rejected = isinstance(found, Rejected)
                answer = Answer(problem=f"{REJECTED}: {found.reason}") if is_rejected else found
                yield name.removeprefix("prompt "), answer

    def _ask(self, request: DrawingRequest, stop: Event) -> Answer:
        assert self.endpoint is not None
        try:
            return answer_of(self.endpoint.post(IMAGES_PATH, self.body(request), stop))
        except Refused as refused:
            return Answer(problem=f"{REFUSED}: {refused}")


def answer_of(body: Mapping[str, Any]) -> Answer:
    """
    The picture in an answer of the images API.

    Raises:
        OSError: when it holds an address in place of the picture, which is not opened.
    """
    try:
        item = body["data"][0]
        encoded, address = item.get("b64_json"), item.get("url")
    except (LookupError, TypeError, AttributeError):
        return Answer(problem="no picture in the answer")
    if not encoded and isinstance(address, str):
        kind, _, encoded = address.partition(";base64,")
        if not kind.startswith("data:image/"):
            raise OSError(
                "A picture must come within the answer, as `b64_json`. This endpoint gives an address, and no other "
                "address than --base-url is opened. Add `--set response_format=b64_json`."
            )
    try:
        data = base64.b64decode("".join(str(encoded or "").split()), validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if not data:
        return Answer(problem="no picture in the answer")
    revised = item.get("revised_prompt")
    return Answer(data, notes={"revised_prompt": revised} if isinstance(revised, str) and revised else {})
