"""A model behind a server, as the page of the app uses a pipeline: it draws, edits and talks."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from ..pipelines.chat import Blip3oChat, Blip3oReply
from ..pipelines.planning import chat_messages
from ..serving.client import Client, Pictures, opened
from ..serving.pictures import Encoding


class ServedDefaults:
    """What a server draws with, where a request does not say."""

    def __init__(self, settings: Mapping[str, Any]):
        self.default_num_inference_steps = int(settings["num_inference_steps"])
        self.default_guidance_scale = float(settings["guidance_scale"])
        self.default_num_attempts = int(settings["num_attempts"])
        self.default_plan = bool(settings["plan"])


class ServedPipeline:
    """
    A server, called as a pipeline is.

    Args:
        client: that asks it.

    Raises:
        OSError: when the server does not answer.
    """

    def __init__(self, client: Client):
        self.client = client
        described = client.description()
        self.name = str(described["id"])
        self.picture_size = tuple(int(side) for side in str(described["size"]).split("x"))
        self.config = ServedDefaults(described["settings"])
        self._unknown: dict[str, Sequence[str]] = {}

    def __call__(
        self,
        prompt: str,
        image: Sequence[Image.Image] | None = None,
        num_images_per_prompt: int = 1,
        generator: Sequence[torch.Generator] = (),
        **settings: Any,
    ) -> Pictures:
        """Pictures of a prompt, or of what it changes; the seeds of the generators follow one another."""
        seed = generator[0].initial_seed()
        if image:
            drawn = self.client.edit(prompt, image, num_images_per_prompt, seed, **settings)
        else:
            drawn = self.client.generate(prompt, num_images_per_prompt, seed, **settings)
        self.remember_words(prompt, drawn.unknown_words)
        return drawn

    def remember_words(self, text: str, words: Sequence[str]) -> None:
        """Keep what the server said of the words of its last prompt."""
        self._unknown = {text: words}

    @property
    def processor(self) -> "ServedPipeline":
        """What knows the words."""
        return self

    def unknown_words(self, text: str) -> Sequence[str]:
        """Words of the last prompt that the model never read."""
        return self._unknown.get(text, ())


class ServedChat(Blip3oChat):
    """
    A conversation with a server, which keeps its keys and values there.

    Args:
        pipe: the server.
        messages: so far.
    """

    pipe: Any

    def __init__(self, pipe: ServedPipeline, messages: Sequence[Mapping[str, Any]] = ()):
        self.pipe = pipe
        self.messages = [dict(message) for message in messages]

    def send(self, text, images=(), generator=None, sampling=None, **generation) -> Blip3oReply:
        return self._turn(text, images, ("text", "image"), generator, sampling or {}, generation)

    def ask(self, text, images=(), **generation) -> Blip3oReply:
        return self._turn(text, images, ("text",), None, {}, generation)

    def draw(self, prompt, images=(), generator=None, plan=None, num_attempts=None, **sampling) -> Blip3oReply:
        settings = {"plan": plan, "num_attempts": num_attempts, **sampling}
        return self._turn(prompt, images, ("image",), generator, settings, {})

    def _turn(
        self,
        text: str,
        images: Sequence[Image.Image],
        modalities: Sequence[str],
        generator: torch.Generator | None,
        sampling: Mapping[str, Any],
        generation: Mapping[str, Any],
    ) -> Blip3oReply:
        asked = {**chat_messages(text, images)[0], "prompt": text}
        seed = None if generator is None else generator.initial_seed()
        messages = [_as_sent(message) for message in [*self.messages, asked]]
        answer = self.pipe.client.chat(messages, modalities=list(modalities), seed=seed, **sampling, **generation)
        self.pipe.remember_words(text, answer.get("unknown_words", ()))
        message = answer["choices"][0]["message"]
        if not message.get("images"):
            self._add(asked, {"role": "assistant", "content": message["content"]})
            return Blip3oReply(message["content"])
        url = message["images"][0]["image_url"]["url"]
        image = opened(base64.b64decode(url.partition(",")[2]))
        plan = answer.get("plan")
        self._add(
            {**asked, **({"plan": plan} if plan else {})},
            {"role": "assistant", "content": [{"type": "image", "image": image}]},
        )
        return Blip3oReply(None, image, None, plan, answer.get("attempts"), answer.get("score"))


def _as_sent(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message in OpenAI's form."""
    content = message["content"]
    if not isinstance(content, str):
        content = [
            {"type": "image_url", "image_url": {"url": Encoding().data_url(part["image"])}}
            if part["type"] == "image"
            else part
            for part in content
        ]
    return {"role": message["role"], "content": content}


__all__ = ["ServedChat", "ServedPipeline"]
