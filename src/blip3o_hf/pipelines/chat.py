"""A conversation in words and pictures: one session that answers, draws, and edits what it drew."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from PIL import Image
from transformers.cache_utils import DynamicSlidingWindowLayer

from ..checks import check_unicode
from ..data.images import as_input_image
from ..files import written_whole
from ..models.backbones import accepts, reading_model, token_cache
from ..models.processing_blip3o import message_images
from ..reading import read_json
from .checking import ACCEPTED, BackboneChecker, check_num_attempts
from .pipeline_blip3o import Blip3oPipeline
from .planning import PLAN_TOKENS, sampled, spawn
from .sampling_arguments import as_number
from .sampling_runs import in_one_thread

CONVERSATION = "conversation.json"
MAX_NEW_TOKENS = 256
NO_ANSWER = "I have no answer to that."
"""The answer if the model gives no words."""
FORMAT = 1
ROLES = ("system", "user", "assistant")
# Arguments of a turn that would make something other than one answer, or one picture.
OWN_GENERATION = ("num_beams", "num_return_sequences", "return_dict_in_generate", "use_cache", "past_key_values")
OWN_GENERATION += ("cache_implementation", "cache_config")
OWN_SAMPLING = ("condition", "image", "num_images_per_prompt", "output_type", "return_dict")


@dataclass(frozen=True)
class Blip3oReply:
    """
    What the assistant gave in a turn.

    Args:
        text: its words.
        image: the picture, where it drew one.
        image_features (`[1, C, h, w]`, *optional*): those of the picture.
        plan: what it wrote before it drew, where it did.
        attempts: how often it drew, where it looked at what it drew.
        score: how likely the picture shows the plan, or the prompt, in [0, 1]; only if it looked at the picture.
    """

    text: str | None = None
    image: Image.Image | None = None
    image_features: torch.Tensor | None = None
    plan: str | None = None
    attempts: int | None = None
    score: float | None = None


class Blip3oChat:
    """
    A conversation with one user. It keeps the keys and values of everything said and shown, so each turn costs its own
    tokens only, whether the model answers or draws. A recurrent or hybrid backbone has no such cache, and reads the
    whole conversation in each turn.

    In a conversation images have the backbone's own positions, in rows and columns: what was read for an answer is
    also used to draw. Answers are those of the backbone's `generate` on the whole conversation.

    Args:
        pipe: what answers and draws; with a processor, and a decoder.
        messages: an earlier conversation to go on from: chat messages, with images as
            `{"type": "image", "image": ...}`.
        reuse_cache: keep keys and values between turns. Without it, each turn reads the whole conversation again and
            says the same.

    Raises:
        ValueError: when the pipeline has no processor, or `messages` are not chat messages.

    Example:

    ```python
    >>> import torch
    >>> from blip3o_hf import Blip3oChat, Blip3oPipeline, packaged_model_path

    >>> chat = Blip3oChat(Blip3oPipeline.from_pretrained(packaged_model_path("blip3o-tiny")))
    >>> picture = chat.draw("a red circle", generator=torch.Generator().manual_seed(0)).image
    >>> chat.ask("what color is the circle?").text
    'red'

    ```
    """

    def __init__(self, pipe: Blip3oPipeline, messages: Sequence[Mapping[str, Any]] = (), reuse_cache: bool = True):
        if pipe.processor is None:
            raise ValueError(
                "A conversation needs a processor, which reads the words. This pipeline has none. Load it with "
                "processor=Blip3oProcessor.from_pretrained(...)."
            )
        if not isinstance(messages, (list, tuple)):
            raise TypeError(
                f"`messages` must be a list of chat messages. Got {type(messages).__name__}. Leave it out for a new "
                f"conversation."
            )
        for message in messages:
            _check_message(message)
        self.pipe = pipe
        self.messages = [_with_pictures(message) for message in messages]
        if self.images:
            pipe.model.check_vision()
        self.reuse_cache = reuse_cache
        self._forget_cache()

    # What a user does

    @in_one_thread
    def send(
        self,
        text: str,
        images: Sequence[Image.Image] | Image.Image = (),
        generator: torch.Generator | None = None,
        sampling: Mapping[str, Any] | None = None,
        **generation: Any,
    ) -> Blip3oReply:
        """
        Say something, and let the model choose: it answers in words, or, where it was trained to, it starts an image
        with its `[IMG]` token and draws what was asked for.

        Args:
            text: the user's words.
            images: shown with them.
            generator: of a picture.
            sampling: for a picture, arguments of the pipeline such as `num_inference_steps`.
            generation: arguments of the backbone's `generate`, such as `max_new_tokens`, `do_sample` or `streamer`.

        Raises:
            TypeError, ValueError: on bad images or arguments, or when the conversation is too long for the backbone;
                it then stays as it was.
        """
        images = self._checked(text, images)
        said, wants_image = self._answer(text, images, may_draw=True, generation=generation)
        if wants_image:
            reply = self.draw(text, images, generator=generator, **(sampling or {}))
            return replace(reply, text=said or None)
        self._add(_user(text, images), {"role": "assistant", "content": said})
        return Blip3oReply(said)

    @in_one_thread
    def ask(self, text: str, images: Sequence[Image.Image] | Image.Image = (), **generation: Any) -> Blip3oReply:
        """Ask something, of the conversation so far or of `images`, and get words. Arguments are those of `send`."""
        images = self._checked(text, images)
        said, _ = self._answer(text, images, may_draw=False, generation=generation)
        self._add(_user(text, images), {"role": "assistant", "content": said})
        return Blip3oReply(said)

    @in_one_thread
    def draw(
        self,
        prompt: str,
        images: Sequence[Image.Image] | Image.Image = (),
        generator: torch.Generator | None = None,
        plan: bool | None = None,
        num_attempts: int | None = None,
        **sampling: Any,
    ) -> Blip3oReply:
        """
        Draw a picture; the model reads everything that was said and shown before.

        Args:
            prompt: what to draw, or what to change in a picture of this conversation.
            images: shown with it.
            generator: draws the plan, where the pipeline samples plans, and the noise.
            plan: let the model first write what it will draw, and draw that; the pipeline's `default_plan` otherwise.
            num_attempts: how often it draws at most until it sees in the picture what it planned, or without a plan
                and earlier pictures what the prompt says; the pipeline's `default_num_attempts` otherwise.
            sampling: arguments of the pipeline, such as `num_inference_steps` and `guidance_scale`.
        """
        _check_arguments("picture", sampling, OWN_SAMPLING)
        images = self._checked(prompt, images)
        plan = self.pipe.config.default_plan if plan is None else plan
        number = self.pipe.config.default_num_attempts if num_attempts is None else num_attempts
        check_num_attempts(number)
        is_looked_at = number > 1 and self.pipe.model.config.has_vision
        is_looked_at = is_looked_at and (plan or not (images or message_images(self.messages)))
        look = BackboneChecker(self.pipe.model, self.pipe.processor) if is_looked_at else None
        request, best, attempts = {}, None, 0
        while best is None or (best.score is not None and best.score < ACCEPTED and attempts < number):
            if best is not None and self.pipe.interrupt:
                break
            attempts += 1
            plan_text = self._plan(prompt, images, generator) if plan else None
            told = self.pipe.processor.instruction.replace("{caption}", plan_text or prompt)
            asked = _user(told, images)
            output = self.pipe(condition=self._condition([*self.messages, asked]), generator=generator, **sampling)
            score = None if look is None else look(output.images, [plan_text or prompt])[0]
            if best is None or (score is not None and best.score is not None and score > best.score):
                best = Blip3oReply(None, output.images[0], output.image_features, plan_text, score=score)
                request = {**asked, "prompt": prompt, **({"plan": plan_text} if plan else {})}
        content = [{"type": "image", "image": best.image}]
        self._add(request, {"role": "assistant", "content": content})
        return replace(best, attempts=None if look is None else attempts)

    def _plan(self, prompt: str, images: Sequence[Image.Image], generator: torch.Generator | None) -> str:
        """What the model writes when it is asked what it will draw; the conversation does not keep it as a turn."""
        asked = self.pipe.processor.plan_instruction.replace("{caption}", prompt)
        settings: dict[str, Any] = {"max_new_tokens": PLAN_TOKENS}
        if self.pipe.config.plan_top_p is not None:
            settings["logits_processor"] = sampled(spawn(generator, 1), self.pipe.config.plan_top_p)
        return self._answer(asked, images, may_draw=False, generation=settings)[0]

    def edit(
        self,
        instruction: str,
        image: Image.Image | None = None,
        generator: torch.Generator | None = None,
        **sampling: Any,
    ) -> Blip3oReply:
        """
        Change a picture: `image`, or the last one of the conversation.

        Raises:
            ValueError: when there is none.
        """
        if image is None and not message_images(self.messages):
            raise ValueError("An edit needs a picture. This conversation has none. Draw one first, or pass `image`.")
        return self.draw(instruction, () if image is None else image, generator, **sampling)

    @property
    def images(self) -> list[Image.Image]:
        """Every picture of the conversation, in order."""
        return message_images(self.messages)

    def forget(self, num_turns: int | None = None) -> None:
        """
        Drop the oldest turns, a user's message with its reply each, or all of them; what the system said stays.

        Raises:
            ValueError: when `num_turns` is not a number of turns.
        """
        if num_turns is not None and (not isinstance(num_turns, int) or isinstance(num_turns, bool) or num_turns < 0):
            raise ValueError(f"`num_turns` is a number of turns. Got {num_turns!r}. Leave it out to forget them all.")
        is_system = bool(self.messages) and self.messages[0]["role"] == "system"
        first, rest = self.messages[:is_system], self.messages[is_system:]
        self.messages = first + ([] if num_turns is None else rest[2 * num_turns :])

    def save(self, folder: str | os.PathLike) -> None:
        """Write the conversation: `conversation.json`, and its pictures as PNG beside it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        stored, names = [], []
        for message in self.messages:
            content = message["content"]
            if not isinstance(content, str):
                content = [dict(item) for item in content]
                for item in content:
                    if item["type"] == "image":
                        names.append(f"image-{len(names)}.png")
                        with written_whole(folder / names[-1]) as path:
                            item["image"].save(path, format="PNG")
                        item["image"] = names[-1]
            stored.append({**message, "content": content})
        with written_whole(folder / CONVERSATION) as path:
            path.write_text(json.dumps({"format": FORMAT, "messages": stored}, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | os.PathLike, pipe: Blip3oPipeline, reuse_cache: bool = True) -> "Blip3oChat":
        """
        A conversation that `save` wrote.

        Raises:
            FileNotFoundError: when there is none.
            ValueError: when the file is damaged, or names a picture outside of the folder.
        """
        path = Path(folder, CONVERSATION)
        if not path.is_file():
            raise FileNotFoundError(f"A saved conversation is a folder with {CONVERSATION}. {folder} has none.")
        try:
            content = read_json(path)
            if content["format"] != FORMAT:
                raise ValueError(f"its `format` is {content['format']!r:.40}, and this version reads {FORMAT}")
            messages = content["messages"]
            for message in messages:
                _check_message(message)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} must hold what `save` wrote. It does not: {error}. Save it again.") from error
        for message in messages:
            for item in message["content"] if not isinstance(message["content"], str) else ():
                if item["type"] == "image":
                    item["image"] = _stored_image(Path(folder), item["image"])
        return cls(pipe, messages, reuse_cache)

    # What the backbone reads

    def _checked(self, text: str, images) -> list[Image.Image]:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"A turn must say something. Got {text!r}. Write a question, or what to draw.")
        check_unicode([text], "A turn")
        images = list(images) if isinstance(images, (list, tuple)) else [images]
        if images:
            self.pipe.model.check_vision()
        return [as_input_image(image) for image in images]

    def _add(self, *messages: dict[str, Any]) -> None:
        self.messages += messages

    def _forget_cache(self) -> None:
        self._cache = token_cache(self.pipe.model.get_decoder())  # none of a backbone that keeps states
        self._ids: list[int] = []
        self._seen: list[Image.Image] = []

    def _crop(self, length: int) -> int:
        """Take the cache back to at most this many tokens, and say how many it holds: none where it has lost them."""
        assert self._cache is not None  # callers have asked
        excess = self._cache.get_seq_length() - length
        if excess <= 0:
            return length
        if any(
            isinstance(layer, DynamicSlidingWindowLayer) and layer.get_seq_length() >= layer.sliding_window
            for layer in self._cache.layers
        ):
            self._forget_cache()
            return 0
        self._cache.crop(-excess)
        return length

    def _answer(
        self, text: str, images: Sequence[Image.Image], may_draw: bool, generation: dict[str, Any]
    ) -> tuple[str, bool]:
        """What the backbone answers, and whether it starts an image."""
        _check_arguments("answer", generation, OWN_GENERATION)
        number = as_number(generation.get("max_new_tokens", 1))
        if type(number) is not int or number < 1:
            raise ValueError(f"`max_new_tokens` must be an integer of at least 1. Got {number!r:.60}. Leave it out.")
        processor, model = self.pipe.processor, self.pipe.model
        ids, positions, pixels = self._read([*self.messages, _user(text, images)], ending="", num_reserved=1)
        start = processor.tokenizer.convert_tokens_to_ids(processor.image_start_token)
        room = MAX_NEW_TOKENS if self._limit is None else self._limit - int(positions.max()) - 1
        settings = {"max_new_tokens": min(MAX_NEW_TOKENS, room), "do_sample": False, "num_beams": 1, **generation}
        name = "eos_token_id" if may_draw else "suppress_tokens"
        given = settings.get(name, getattr(model.generation_config, name))
        settings[name] = [*(given if isinstance(given, list) else [] if given is None else [given]), start]
        # An answer begins with a word, or with the token that starts an image.
        settings.setdefault("begin_suppress_tokens", self._silent_tokens)
        self._ids = []  # an interrupt may leave layers of several lengths; they are read again then
        if self._cache is None:
            read = pixels
        else:
            read = {"position_ids": positions, "past_key_values": self._cache}
        sequence = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **read, **settings)[0].tolist()
        if self._cache is not None:
            self._ids = sequence[: self._cache.get_seq_length()]
        said = sequence[ids.shape[1] :]
        wants_image = may_draw and said[-1:] == [start]
        text = processor.post_process_image_text_to_text(torch.tensor([said]))[0].strip()
        return text if text or wants_image else NO_ANSWER, wants_image

    @property
    def _silent_tokens(self) -> list[int]:
        """The special tokens, which say nothing, but for the one that starts an image."""
        tokenizer = self.pipe.processor.tokenizer
        start = tokenizer.convert_tokens_to_ids(self.pipe.processor.image_start_token)
        return [token for token in tokenizer.all_special_ids if token != start]

    def _condition(self, messages: Sequence[Mapping[str, Any]]) -> torch.Tensor:
        """The condition `[1, num_queries, hidden]` of messages whose last one asks for a picture."""
        model = self.pipe.model
        ids, positions, pixels = self._read(
            messages, self.pipe.processor.image_start_token, model.config.num_queries, is_read_whole=True
        )
        with torch.no_grad():
            if self._cache is None:
                return model.read_together(ids, positions, **pixels)
            read, self._ids = self._ids, []
            condition = model.read_queries(self._cache, positions)
        self._ids = read[: self._crop(ids.shape[1])]
        return condition

    @property
    def _limit(self) -> int | None:
        """How many positions the backbone has; none where it counts none."""
        return getattr(self.pipe.model.config.get_text_config(), "max_position_embeddings", None)

    def _read(
        self, messages: Sequence[Mapping[str, Any]], ending: str, num_reserved: int, is_read_whole: bool = False
    ) -> tuple[torch.LongTensor, torch.LongTensor, dict[str, torch.Tensor]]:
        """
        Bring the cache to the end of the messages, or, where the library reads the last token itself, to the one
        before it.

        Returns:
            Token ids `[1, L]`, their positions `[1, L]` or `[3, 1, L]`, and where there is no cache, the image inputs.
        """
        processor, model = self.pipe.processor, self.pipe.model
        self.pipe._load_offloaded_model()
        device = self.pipe._execution_device
        text = processor.apply_chat_template(messages, add_generation_prompt=True) + ending
        images = message_images(messages)
        inputs = self._inputs(text, images)
        ids = inputs["input_ids"].to(device)
        pixels = self._pixels(inputs)
        positions = model.prompt_positions(ids, torch.ones_like(ids), pixels.get("image_grid_thw"))
        if self._limit is not None and int(positions.max()) + 1 + num_reserved > self._limit:
            raise ValueError(
                f"A conversation must fit the backbone's context, {self._limit} positions. With this turn it has "
                f"{int(positions.max()) + 1 + num_reserved}. Drop its beginning with `forget(1)`, or start a new one."
            )
        if not self.reuse_cache:
            self._forget_cache()
        if self._cache is None:
            return ids, positions, pixels
        end = ids.shape[1] - (not is_read_whole)
        spans = [span for span in inputs.get("text_replacement_offsets", [[]])[0] if span["type"] == "image"]
        starts = _image_starts(
            ids[0], processor.image_token_id, [span["replacement"].count(processor.image_token) for span in spans]
        )
        begin = self._crop(min(self._common_length(ids[0].tolist(), images, starts), end))
        num_read = sum(start < begin for start in starts)
        if num_read < len(images) and accepts(reading_model(model.backbone), "token_type_ids"):
            begin, num_read = self._crop(0), 0  # images attend both ways, and such a mask has no tokens before it
        self._ids = []
        if begin < end:
            if num_read == len(images):
                pixels = {}
            elif num_read:
                new = images[num_read:]
                pixels = self._pixels(self._inputs(processor.image_token * len(new), new))
            with torch.no_grad():
                model.read_prompt(ids[:, begin:end], positions[..., begin:end], past_key_values=self._cache, **pixels)
        self._ids, self._seen = ids[0, :end].tolist(), images
        return ids, positions, {}

    def _inputs(self, text: str, images: Sequence[Image.Image]) -> Mapping[str, Any]:
        return self.pipe.processor(
            text=[text],
            **({"images": list(images)} if images else {}),
            add_special_tokens=False,
            verbose=False,  # the limit is the backbone's, and is checked later
            return_tensors="pt",
            return_mm_token_type_ids=False,
            return_text_replacement_offsets=True,
        )

    def _pixels(self, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """What the backbone needs of images."""
        names = self.pipe.processor.image_processor.model_input_names
        return {name: inputs[name].to(self.pipe._execution_device) for name in names if name in inputs}

    def _common_length(self, ids: list[int], images: list[Image.Image], starts: list[int]) -> int:
        """How many tokens of the cache are those of a conversation, pictures compared, too."""
        pairs = zip(self._ids, ids, strict=False)
        length = next((i for i, (old, new) in enumerate(pairs) if old != new), min(len(self._ids), len(ids)))
        for index, start in enumerate(starts):
            is_same = index < len(self._seen) and self._seen[index] is images[index]
            if start < length and not is_same:
                return start
        return length


def _user(text: str, images: Sequence[Image.Image]) -> dict[str, Any]:
    if not images:  # a plain string, which templates of text-only backbones read, too
        return {"role": "user", "content": text}
    shown = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*shown, {"type": "text", "text": text}]}


def _image_starts(ids: torch.Tensor, image_token_id: int, lengths: Sequence[int]) -> list[int]:
    """Where the placeholders of each image begin, given how many each has."""
    slots = (ids == image_token_id).nonzero().flatten().tolist()
    starts, first = [], 0
    for length in lengths:
        starts.append(slots[first])
        first += length
    return starts


def _check_message(message: Any) -> None:
    content = message.get("content") if isinstance(message, Mapping) else None
    is_list = isinstance(content, (list, tuple)) and all(
        isinstance(item, Mapping)
        and (isinstance(item.get("text"), str) if item.get("type") == "text" else item.get("type") == "image")
        and item["type"] in item
        for item in content
    )
    if (
        not isinstance(message, Mapping)
        or message.get("role") not in ROLES
        or not (isinstance(content, str) or is_list)
    ):
        raise ValueError(
            f"A message must have a role ({', '.join(ROLES)}) and a content, a text or a list of texts and images. "
            f"Got {message!r:.80}."
        )


def _with_pictures(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message of our own, its images opened."""
    content = message["content"]
    if not isinstance(content, str):
        content = [
            {**item, "image": as_input_image(item["image"])} if item["type"] == "image" else dict(item)
            for item in content
        ]
    return {**message, "content": content}


def _check_arguments(what: str, given: Mapping[str, Any], reserved: Sequence[str]) -> None:
    taken = [name for name in reserved if name in given]
    if taken:
        raise TypeError(
            f"A turn makes one {what}, and the conversation goes on from it. Got {', '.join(taken)}. Leave it out, or "
            f"call the pipeline."
        )


def _stored_image(folder: Path, name: Any) -> Image.Image:
    if not isinstance(name, str) or name in ("", "..") or PurePosixPath(name).name != name:
        raise ValueError(f"A saved conversation names pictures beside it. {folder} names {name!r}. Save it again.")
    path = folder / name
    if path.is_symlink():
        raise ValueError(f"A saved conversation holds its pictures itself. {path} is a link. Save it again.")
    return as_input_image(path)


__all__ = ["Blip3oChat", "Blip3oReply"]
