"""Who writes captions of pictures: our own model, or any chat model behind an endpoint."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from PIL import Image

from ..evaluation.answers import answer
from .checks import picture_message
from .endpoint import REJECTED, Endpoint, Refused, Rejected
from .teachers import Answer

LONG = "Describe the image in detail, in one paragraph of about 90 words. Begin with what is shown."
SHORT = "Describe the image in one plain sentence of at most 15 words."
MAX_TOKENS = 400
REFUSED = "refused by the model"
CUT = "cut off"


class Captioner(Protocol):
    """Writes captions."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that decides them, in JSON's types."""
        ...

    @property
    def group_size(self) -> int:
        """So many pictures are described by one call, always the same ones."""
        ...

    def describe(self, images: Sequence[Image.Image], instruction: str) -> Iterable[tuple[str | None, str]]:
        """For each picture, in order: the text, or `None` and why there is none."""
        ...


class ModelCaptioner:
    """
    The backbone of a pipeline; it answers greedily.

    Args:
        pipe: whose model reads images.
        name: of it, for manifests.
        group_size: pictures in a batch.
    """

    def __init__(self, pipe: Any, name: str, group_size: int = 8):
        pipe.model.check_vision()
        self.pipe = pipe
        self.group_size = group_size
        self.settings = {"kind": "pipeline", "model": name, "group_size": group_size, "max_tokens": MAX_TOKENS}

    def describe(self, images: Sequence[Image.Image], instruction: str) -> Iterator[tuple[str | None, str]]:
        texts = answer(
            self.pipe.model, self.pipe.processor, images, [instruction] * len(images), max_new_tokens=MAX_TOKENS
        )
        for text in texts:
            num_tokens = len(self.pipe.processor.tokenizer(text, add_special_tokens=False)["input_ids"])
            yield (text, "") if num_tokens < MAX_TOKENS - 1 else (None, f"{CUT}: after {MAX_TOKENS} tokens")


class EndpointCaptioner:
    """
    A chat model behind an OpenAI-compatible endpoint.

    Args:
        endpoint: where it is.
        model: its name there.
        at_once: requests that wait for an answer at the same time.
    """

    def __init__(self, endpoint: Endpoint, model: str, at_once: int = 8):
        self.endpoint = endpoint
        self.model = model
        self.group_size = at_once
        self.settings = {
            "kind": "openai",
            "model": model,
            "base_url": endpoint.base_url,
            "max_tokens": MAX_TOKENS,
        }

    def describe(self, images: Sequence[Image.Image], instruction: str) -> Iterator[tuple[str | None, str]]:
        with ThreadPoolExecutor(self.group_size) as pool:
            found = list(pool.map(lambda image: self._ask(image, instruction), images))
        for each in found:
            if isinstance(each, Rejected) and not self.endpoint.has_answered:
                raise each
            yield (None, f"{REJECTED}: {each.reason}") if isinstance(each, Rejected) else each

    def _ask(self, image: Image.Image, instruction: str) -> tuple[str | None, str] | Rejected:
        message = picture_message(Answer.of_image(image).data, instruction)
        try:
            text, is_cut = self.endpoint.chat(self.model, [message], max_tokens=MAX_TOKENS)
        except Refused as refused:
            return None, f"{REFUSED}: {refused}"
        except Rejected as rejected:
            return rejected
        return (None, f"{CUT}: after {MAX_TOKENS} tokens") if is_cut else (text, "")
