"""What the buttons of the app do, without the page: uploads and settings in, pictures and words out."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..checks import check_name
from ..data.images import as_input_image
from ..pipelines.chat import Blip3oChat
from ..pipelines.pipeline_blip3o import Blip3oPipeline
from ..pipelines.reconstruction import MODES, Blip3oReconstructionPipeline
from ..serving.talking import parts_of
from .served import ServedChat, ServedPipeline

TURNS = ("send", "ask", "draw", "edit")
Messages = tuple[Mapping[str, Any], ...]
Model = Blip3oPipeline | ServedPipeline
"""Of this process, or of a server."""
CaptionedImage = tuple[Image.Image, str]


@dataclass(frozen=True)
class Sampling:
    """
    What a user may set of a picture.

    Args:
        seed: of the noise; of several pictures, picture i has `seed + i`.
        num_inference_steps, guidance_scale, num_attempts, plan: those of the pipeline; by default the model's.
    """

    seed: int = 0
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    num_attempts: int | None = None
    plan: bool | None = None

    def generators(self, num_images: int) -> list[torch.Generator]:
        """
        One for each picture.

        Raises:
            ValueError: when the seed is not valid.
        """
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**53:  # a browser counts so far
            raise ValueError(f"A seed must be a whole number of at least 0. Got {self.seed!r}. Try 0.")
        return [torch.Generator().manual_seed(self.seed + index) for index in range(num_images)]

    def arguments(self) -> dict[str, Any]:
        """Those of the pipeline."""
        names = ("num_inference_steps", "guidance_scale", "num_attempts", "plan")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Said:
    """What the page shows of a message: who said it, the words, and the pictures."""

    role: str
    text: str
    images: tuple[Image.Image, ...] = ()


def open_uploads(paths: Sequence[str]) -> list[Image.Image]:
    """
    Uploaded files as upright RGB images.

    Raises:
        ValueError: naming the file, and not the place where the server keeps it.
    """
    images = []
    for path in paths:
        try:
            images.append(as_input_image(path))
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), Path(path).name)) from error
    return images


def unknown_words(pipe: Model, text: str) -> str | None:
    """A sentence on the words of a text that the model never read; `None` where it knows them all."""
    words = pipe.processor.unknown_words(text)
    return f"The model never read {', '.join(map(repr, words))}. It uses the other words." if words else None


def generate(pipe: Model, prompt: str, num_images: int, sampling: Sampling) -> tuple[list[CaptionedImage], str | None]:
    """Pictures of one prompt, each with its seed, and what there is to say: words not known, plans, doubts."""
    output = pipe(
        prompt,
        num_images_per_prompt=num_images,
        generator=sampling.generators(num_images),
        **sampling.arguments(),
    )
    captions = [f"seed {sampling.seed + index}" for index in range(num_images)]
    notes = [note] if (note := unknown_words(pipe, prompt)) else []
    for index, caption in enumerate(captions):
        if output.plans:
            notes.append(f"Plan of {caption}: {output.plans[index]}")
        if output.attempts and output.attempts[index] > 1:
            captions[index] += f", attempt {output.attempts[index]}"
        if output.accepted and not output.accepted[index]:
            captions[index] += ", may be wrong"
    return list(zip(output.images, captions, strict=True)), "\n".join(notes) or None


def edit(pipe: Model, instruction: str, paths: Sequence[str], sampling: Sampling) -> Image.Image:
    """
    The uploaded pictures as one that the instruction describes.

    Raises:
        ValueError: when there is no picture, or one cannot be read.
    """
    if not paths:
        raise ValueError("An edit needs a picture. Got none. Upload one, or several that the instruction speaks of.")
    images = open_uploads(paths)
    return pipe(instruction, image=images, generator=sampling.generators(1), **sampling.arguments()).images[0]


def reconstruct(pipe: Blip3oReconstructionPipeline, paths: Sequence[str], sampling: Sampling) -> list[CaptionedImage]:
    """
    Each uploaded picture as the encoder sees it, then drawn again in every way that the model can, with how close the
    results are.

    Raises:
        ValueError: when there is no picture, or one cannot be read.
    """
    if not paths:
        raise ValueError("A reconstruction needs a picture. Got none. Upload one, or several.")
    images = open_uploads(paths)
    modes = MODES if pipe.pipe.model.config.has_vision else ("autoencoder",)
    outputs = {
        mode: pipe(images, mode, generator=sampling.generators(len(images)), **sampling.arguments()) for mode in modes
    }
    shown: list[CaptionedImage] = []
    for index in range(len(images)):
        shown.append((outputs[modes[0]].originals[index], "original"))
        for mode, output in outputs.items():
            caption = f"{mode}: cosine {output.feature_cosine[index]:.3f}, PSNR {output.psnr[index]:.1f} dB"
            shown.append((output.images[index], caption))
    return shown


class Conversations:
    """
    The conversations of all users of the page. Each browser session keeps its own messages, passes them in and gets
    them back. Only the conversation that was used last has its keys and values in memory, so many users need no more
    memory than one.

    Args:
        pipe: what answers and draws.
    """

    def __init__(self, pipe: Model):
        self.pipe = pipe
        self._last: Blip3oChat | None = None
        self._files = tempfile.TemporaryDirectory(prefix="blip3o-app-")

    def turn(
        self,
        messages: Messages,
        kind: str,
        text: str,
        paths: Sequence[str],
        sampling: Sampling,
    ) -> Messages:
        """
        A conversation one turn further.

        Args:
            messages: the conversation so far.
            kind: `"send"` to let the model choose, `"ask"`, `"draw"`, or `"edit"`, which changes the uploaded
                pictures, or else the last one of the conversation.
            text: the user's words.
            paths: of uploaded pictures.
            sampling: of a picture.

        Raises:
            TypeError, ValueError: as in [`Blip3oChat`]; the conversation is then what it was.
        """
        check_name("kind of turn", kind, TURNS)
        images = open_uploads(paths)
        generator = sampling.generators(1)[0]
        settings = sampling.arguments()
        chat = self._chat(messages)
        if kind == "send":
            chat.send(text, images, generator, settings)
        elif kind == "ask":
            chat.ask(text, images)
        elif kind == "edit" and not images:
            chat.edit(text, generator=generator, **settings)
        else:
            chat.draw(text, images, generator, **settings)
        return tuple(chat.messages)

    def forget(self, messages: Messages, num_turns: int | None = None) -> Messages:
        """The conversation without its oldest turns, or without all of them."""
        chat = self._chat(messages)
        chat.forget(num_turns)
        return tuple(chat.messages)

    def save(self, messages: Messages) -> str:
        """
        A zip file of the conversation, as `Blip3oChat.save` writes it.

        Raises:
            ValueError: when nothing was said.
        """
        if not messages:
            raise ValueError("A conversation to save must have a turn. This one has none. Say something first.")
        folder = Path(tempfile.mkdtemp(dir=self._files.name))
        self._chat(messages).save(folder / "conversation")
        archive = shutil.make_archive(str(folder / "conversation"), "zip", folder / "conversation")
        shutil.rmtree(folder / "conversation")
        return archive

    def transcript(self, messages: Messages) -> list[Said]:
        """What the page shows of a conversation: the user's own words, and the plan beside what was drawn from it."""
        said: list[Said] = []
        for index, message in enumerate(messages):
            text, images = parts_of(message)
            plan = messages[index - 1].get("plan") if index and message["role"] == "assistant" else None
            if plan:
                text = f"Plan: {plan}"
            said.append(Said(message["role"], message.get("prompt", text), tuple(images)))
        return said

    def _chat(self, messages: Messages) -> Blip3oChat:
        last = self._last
        if last is None or list(map(id, last.messages)) != list(map(id, messages)):
            if isinstance(self.pipe, ServedPipeline):
                last = ServedChat(self.pipe, messages)
            else:
                last = Blip3oChat(self.pipe, messages)
            self._last = last
        return last
