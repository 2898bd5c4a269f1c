"""Asks a server of this package for pictures and words; nothing of a model is loaded here."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
from PIL import Image

from ..collection.access import check_address, check_key
from ..collection.endpoint import error_message, unicode_text
from ..data.images import decode_image
from ..data.records import BadItem
from .pictures import MAX_IMAGES, Encoding

TIMEOUT = 600.0


@dataclass(frozen=True)
class Pictures:
    """
    What a server drew.

    Args:
        images: the pictures.
        plans: what the model wrote before it drew, where it did.
        attempts: how often it drew each, where it looked.
        accepted: whether it found each right, where it looked.
        unknown_words: of the prompt, that the model never read.
    """

    images: list[Image.Image]
    plans: list[str] | None = None
    attempts: list[int] | None = None
    accepted: list[bool] | None = None
    unknown_words: tuple[str, ...] = ()


class Client:
    """
    A server of `blip3o-hf serve`.

    Args:
        url: its address, such as `http://localhost:8000`; with or without `/v1`.
        key (*optional*): sent to it alone; never in an error.
        option: what the address is called in errors.

    Raises:
        ValueError: when `url` is no address, or no header can hold the key.
    """

    def __init__(self, url: str, key: str | None = None, option: str = "--server"):
        check_address(url, option)
        if key is not None:
            check_key(key)
        self.url = url.rstrip("/").removesuffix("/v1")
        self._key = key
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._client = httpx2.Client(headers=headers, timeout=TIMEOUT)

    def description(self) -> dict[str, Any]:
        """The name of the model, the size of its pictures, and its defaults."""
        return self._asked("GET", "/v1/models")["data"][0]

    def generate(self, prompt: str, num_images: int, seed: int, **settings: Any) -> Pictures:
        """
        Pictures of a prompt, picture `i` drawn with `seed + i`.

        Args:
            settings: fields of the request, such as `num_inference_steps`; those that are `None` are left out.

        Raises:
            ValueError: when the server says what is wrong with the request.
            OSError: when it does not answer, or fails.
        """
        asked = {"prompt": prompt, **_given(settings)}
        return self._drawn(num_images, seed, lambda body: self._post("/v1/images/generations", {**asked, **body}))

    def edit(
        self, prompt: str, images: Sequence[Image.Image], num_images: int, seed: int, **settings: Any
    ) -> Pictures:
        """Pictures as a prompt changes them; arguments and errors are those of `generate`."""
        asked = {name: str(value).lower() if isinstance(value, bool) else value for name, value in settings.items()}
        asked = {"prompt": prompt, **_given(asked)}
        files = [
            ("image[]", (f"{index}.png", Encoding().write(image), "image/png")) for index, image in enumerate(images)
        ]

        def one(body: Mapping[str, Any]) -> dict[str, Any]:
            form = {name: str(value) for name, value in {**asked, **body}.items()}
            return self._asked("POST", "/v1/images/edits", data=form, files=files)

        return self._drawn(num_images, seed, one)

    def chat(self, messages: Sequence[Mapping[str, Any]], **settings: Any) -> dict[str, Any]:
        """The whole answer to messages in OpenAI's form; errors are those of `generate`."""
        return self._post("/v1/chat/completions", {"messages": list(messages), **_given(settings)})

    def _drawn(self, num_images: int, seed: int, ask: Any) -> Pictures:
        entries: list[dict[str, Any]] = []
        unknown: tuple[str, ...] = ()
        while len(entries) < num_images:
            number = min(MAX_IMAGES, num_images - len(entries))
            answer = ask({"n": number, "seed": seed + len(entries)})
            entries += answer["data"]
            unknown = tuple(answer.get("unknown_words", ()))
        return Pictures(
            [opened(base64.b64decode(entry["b64_json"])) for entry in entries],
            *(
                [entry[name] for entry in entries] if all(name in entry for entry in entries) else None
                for name in ("revised_prompt", "attempts", "accepted")
            ),
            unknown_words=unknown,
        )

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._asked("POST", path, json=dict(body))

    def _asked(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        try:
            response = self._client.request(method, self.url + path, **content)
            answer = response.json()
        except httpx2.RequestError as error:
            raise OSError(
                f"{self.url} must answer. It does not ({type(error).__name__}). Start it with `blip3o-hf serve`."
            ) from error
        except ValueError as error:
            raise OSError(f"{self.url} must answer in JSON. It does not. Check the address.") from error
        if response.status_code == 200 and isinstance(answer, dict):
            return answer
        said = unicode_text(error_message(answer) or "nothing")[:500]
        said = said if self._key is None else said.replace(self._key, "[key]")
        if response.status_code < 500 and response.status_code not in (401, 403, 408, 429):
            raise ValueError(said)
        raise OSError(f"{self.url} must answer. It answered {response.status_code}: {said}")


def opened(data: bytes) -> Image.Image:
    """
    A picture that a server sent.

    Raises:
        OSError: when it is none.
    """
    try:
        return decode_image(data, "its picture")
    except BadItem as error:
        raise OSError(f"A server must send pictures. Got {len(data):,} bytes: {error}.") from error


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


__all__ = ["Client", "Pictures"]
