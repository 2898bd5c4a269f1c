"""Whether a picture shows its prompt, and whether it may be kept: a model's yes or no, and functions of your own."""

import base64
import re
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from ..checks import is_finite_number
from ..data.images import image_kind
from ..pipelines.checking import ACCEPTED, BackboneChecker, Checker
from .endpoint import REJECTED, Endpoint, Refused, Rejected, unicode_text
from .teachers import Answer

QUESTION = 'Does this picture show what this text says? Answer with yes or no only. Text: "{prompt}"'
REFUSED = "refused"
MIME = {"jpg": "jpeg", "tif": "tiff"}

SafetyFilter = Callable[[Sequence[Image.Image], Sequence[str]], Sequence[str | None]]
"""Given pictures and their prompts, returns for each why it must not be kept, or `None`."""


class EndpointChecker:
    """
    A chat model behind an endpoint that answers yes or no.

    Args:
        endpoint: where it is.
        model: its name there.
    """

    def __init__(self, endpoint: Endpoint, model: str):
        self.endpoint = endpoint
        self.model = model

    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[float | str]:
        """1 for yes and 0 for no; else what it said."""
        return [self._ask(image, text) for image, text in zip(images, texts, strict=True)]

    def _ask(self, image: Image.Image, text: str) -> float | str:
        question = QUESTION.replace("{prompt}", text)
        message = picture_message(Answer.of_image(image).data, question)
        try:
            said, _ = self.endpoint.chat(self.model, [message], max_tokens=5)
        except Refused as refused:
            return f"{REFUSED}: {refused}"[:100]
        except Rejected as rejected:
            if not self.endpoint.has_answered:
                raise
            return f"{REJECTED}: {rejected.reason}"[:100]
        first = re.match(r"\W*(\w*)", said.casefold())
        return {"yes": 1.0, "no": 0.0}.get(first[1] if first else "", said.strip()[:100])


def picture_message(data: bytes | None, text: str) -> dict[str, Any]:
    """A message of a user that shows an encoded picture and says a text, in OpenAI's form."""
    assert data is not None
    kind = image_kind(data) or "png"
    url = f"data:image/{MIME.get(kind, kind)};base64,{base64.b64encode(data).decode()}"
    return {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}],
    }


def model_checker(pipe: Any) -> BackboneChecker:
    """The check of a pipeline's own model."""
    return BackboneChecker(pipe.model, pipe.processor, pipe._execution_device)


def verdicts(check: Checker | EndpointChecker, images: Sequence, texts: Sequence[str]) -> list[float | str]:
    """
    What a check says of pictures: a number in [0, 1], or, where it says neither yes nor no, its words.

    Raises:
        ValueError: when it does not say something of every picture.
    """
    said: list[Any] = list(check(images, texts))
    if len(said) != len(images):
        raise ValueError(f"A check must answer for every picture. It got {len(images)} and answered {len(said)}.")
    values = [each.item() if hasattr(each, "item") else each for each in said]
    return [float(each) if _is_share(each) else unicode_text(str(each)[:100]) for each in values]


def _is_share(value: object) -> bool:
    return isinstance(value, bool) or (is_finite_number(value) and 0 <= float(str(value)) <= 1)


def problem_of(verdict: float | str | None) -> tuple[str, str] | None:
    """Why a picture with this verdict is dropped, and in which words; `None` where it is kept."""
    if verdict is None:
        return None
    if isinstance(verdict, str):
        return "the check said neither yes nor no", verdict
    return ("does not show its prompt", f"{verdict:.4f}") if verdict < ACCEPTED else None


def safety_reasons(safety: SafetyFilter, images: Sequence, texts: Sequence[str]) -> list[str | None]:
    """
    Why pictures must not be kept.

    Raises:
        ValueError: when the filter does not answer with a reason or `None` for every picture.
    """
    said = list(safety(images, texts))
    if len(said) != len(images) or not all(each is None or isinstance(each, str) for each in said):
        raise ValueError(
            f"A safety filter must give for each of {len(images)} pictures a reason as text, or None. "
            f"Got {said!r:.120}."
        )
    return [None if each is None else unicode_text(each) for each in said]
