"""The processor: chat template, the paper's generation instruction, tokens by name, images."""

import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, PreTrainedTokenizerBase
from transformers.configuration_utils import PreTrainedConfig
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import SizeDict
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin

from ..checkpoints.loading import named_errors
from ..checkpoints.lookup import HUB_ARGUMENTS, HubFiles, LocalFiles, checkpoint_files, given_arguments
from ..checkpoints.published_config import backbone_config, published_settings
from ..checkpoints.settings import read_settings
from ..checks import check_sizes, check_unicode, is_finite_number
from .backbone_processors import UNREAD, fitted_template, image_text, image_token_of, tokens_per_tile
from .chat_templates import rendered, try_template
from .configuration_blip3o import has_vision

GENERATION_INSTRUCTION = "Please generate image based on the following caption: {caption}"
PLAN_INSTRUCTION = "Please describe the image to draw for the following caption: {caption}"
CHECK_INSTRUCTION = "Does the image show exactly this: {caption}? Answer yes or no."

CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}"
    "{%- for item in message['content'] -%}"
    "{%- if item['type'] == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- elif item['type'] == 'text' -%}{{- item['text'] -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{{- '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)

# The reference closes the assistant's empty turn before the image in training, and leaves it open to draw.
REFERENCE_TRAINING_TURN_END = "<|im_end|>\n"
# Areas in pixels between which Qwen2.5-VL, as published, reads an image at its own size.
QWEN_IMAGE_SIZE = {"shortest_edge": 56 * 56, "longest_edge": 16384 * 28 * 28}


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json")
_IMAGE_PROCESSOR_FILE = "preprocessor_config.json"


def has_tokenizer(files: LocalFiles | HubFiles) -> bool:
    """Whether a checkpoint's files hold a tokenizer."""
    return any(files.path(name) for name in _TOKENIZER_FILES)


def _check_vocabulary(files: LocalFiles | HubFiles) -> None:
    """Raise a `ValueError` when there is no vocabulary: the library would read every prompt as empty."""
    if not files.path("tokenizer.json") and not (files.path("vocab.json") and files.path("merges.txt")):
        raise ValueError(
            f"A tokenizer must have its vocabulary: tokenizer.json, or vocab.json and merges.txt. {files} has "
            f"neither. Download them."
        )


def message_images(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The images in chat messages, in their order."""
    contents = [message["content"] for message in messages if not isinstance(message["content"], str)]
    return [item["image"] for content in contents for item in content if item["type"] == "image"]


class Blip3oProcessor(ProcessorMixin):
    r"""
    Prepares text and images for [`Blip3oForConditionalGeneration`].

    `processor(text=..., images=...)` and `apply_chat_template` prepare understanding inputs, as for any
    vision-language model. `encode_prompts` prepares prompts for image generation.

    `from_pretrained` reads the folder of a published checkpoint, too: it gets the image processor of Qwen2.5-VL on
    PIL, the chat template and the training prompts of the reference.

    Args:
        image_processor (`BaseImageProcessor`): that of the backbone; any one for a backbone that reads text only.
        tokenizer (`PreTrainedTokenizerBase`): must know the token `image_start_token`.
        chat_template (`str`, *optional*): jinja template; ChatML with images by default.
        image_start_token (`str`, defaults to `"[IMG]"`): the token after which an image is generated.
        instruction (`str`): the user turn of a generation prompt; `{caption}` stands for the caption (the paper's
            instruction by default).
        plan_instruction (`str`): the user turn that asks for a plan of the picture in words, before it is drawn;
            `{caption}` stands for the caption.
        check_instruction (`str`): the user turn that asks whether an image shows a caption, to be answered with yes
            or no; `{caption}` stands for the caption.
        num_image_tokens (`int`, *optional*): placeholders of an image, or of each of its tiles, for a backbone whose
            vision tower reads pictures of one size (LLaVA, SmolVLM, Gemma 3); by default the image processor's grids
            tell.
        image_token (`str`, *optional*): the placeholder that the backbone reads as an image; by default the
            tokenizer's, or else `<|image_pad|>`.
        has_whole_words (`bool`, defaults to `False`): whether every word that the model was trained on is a token, so
            that a word of several tokens is one it never read. See `unknown_words`.
        max_prompt_length (`int`, *optional*): longest generation prompt in tokens, `[IMG]` included.
        training_turn_end (`str`, defaults to `""`): what training prompts have between the chat text and `[IMG]`;
            `"<|im_end|>\n"` as published checkpoints were trained.
    """

    return_mm_token_type_ids = True
    text_kwargs = {"padding_side": "left"}

    def __init__(
        self,
        image_processor: BaseImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        chat_template: str | dict[str, str] | None = None,
        image_start_token: str = "[IMG]",
        instruction: str = GENERATION_INSTRUCTION,
        plan_instruction: str = PLAN_INSTRUCTION,
        check_instruction: str = CHECK_INSTRUCTION,
        num_image_tokens: int | None = None,
        has_whole_words: bool = False,
        max_prompt_length: int | None = None,
        training_turn_end: str = "",
        image_token: str | None = None,
        **kwargs,
    ):
        assert tokenizer is not None  # all that is read here needs one
        self.image_token = image_token or getattr(tokenizer, "image_token", None) or "<|image_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        for name, given, usual in (
            ("instruction", instruction, f"The paper's is {GENERATION_INSTRUCTION!r}."),
            ("plan_instruction", plan_instruction, f"By default it is {PLAN_INSTRUCTION!r}."),
            ("check_instruction", check_instruction, f"By default it is {CHECK_INSTRUCTION!r}."),
        ):
            if not isinstance(given, str) or "{caption}" not in given:
                raise ValueError(
                    f"`{name}` must contain '{{caption}}', the place of the prompt. Got {given!r:.80}. {usual}"
                )
        for name in ("image_mean", "image_std"):
            values = getattr(image_processor, name, None)
            above = 0.0 if name == "image_std" else -math.inf
            if values is not None and not all(is_finite_number(value, above) for value in values):
                raise ValueError(
                    f"`{name}` of the image processor must hold finite numbers{' above 0' * (name == 'image_std')}. "
                    f"Got {values}. Use the settings that were saved with the model."
                )
        for name in ("size", "crop_size"):
            sides = getattr(image_processor, name, None)
            if isinstance(sides, (dict, SizeDict)):
                check_sizes(**{f"{name}.{side}": number for side, number in dict(sides).items() if number is not None})
        for name, number in (("num_image_tokens", num_image_tokens), ("max_prompt_length", max_prompt_length)):
            if number is not None:
                check_sizes(**{name: number})
        if image_start_token not in tokenizer.get_vocab():
            raise ValueError(
                f"The tokenizer must know the token that starts an image. It has no {image_start_token!r}. Add it "
                f"with `tokenizer.add_special_tokens` and resize the backbone's embeddings."
            )
        self.image_start_token = image_start_token
        self.instruction = instruction
        self.plan_instruction = plan_instruction
        self.check_instruction = check_instruction
        self.num_image_tokens = num_image_tokens
        # Backbones with grids take the kind of each token, and those with crops (Gemma 3); others take none.
        self._has_crops = "num_crops" in getattr(image_processor, "model_input_names", ())
        self.return_mm_token_type_ids = num_image_tokens is None or self._has_crops
        self.has_whole_words = has_whole_words
        self.max_prompt_length = max_prompt_length
        self.training_turn_end = training_turn_end
        # `encode_prompts` refuses a prompt that is too long, in words of its own.
        tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
        # What is generated follows the last token, whatever the tokenizer's files say.
        tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"
        if hasattr(image_processor, "return_row_col_info"):
            image_processor.return_row_col_info = True  # ty: ignore[invalid-assignment]  # `hasattr` is read as read-only
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE, **kwargs)
        self._try_template()

    @classmethod
    def from_pretrained(  # ty: ignore[incompatible-method-override]  # arguments of the library go on by name
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs
    ):
        """
        As in transformers. A published folder holds a tokenizer and no processor config: its image processor comes
        from `preprocessor_config.json` or, where that is missing, from the patch sizes in `config.json`.

        Raises:
            ValueError: when a file is damaged, or the vocabulary is missing.
        """
        with named_errors(pretrained_model_name_or_path):
            return cls._from_repository(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def _from_repository(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        files = checkpoint_files(pretrained_model_name_or_path, **kwargs)
        if isinstance(files, LocalFiles):
            for path in filter(None, map(files.path, (*_TOKENIZER_FILES, _IMAGE_PROCESSOR_FILE))):
                side = read_settings(path).get("padding_side", "left")
                if side not in ("left", "right"):
                    raise ValueError(
                        f"`padding_side` must be 'left' or 'right'. {path} has {side!r:.40}. Save it again."
                    )
        settings = published_settings(pretrained_model_name_or_path, **kwargs)
        if settings is None:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        processor_dict, processor_kwargs = cls.get_processor_dict(pretrained_model_name_or_path, **kwargs)
        if processor_dict.keys() - {"chat_template"}:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        hub_arguments = given_arguments(HUB_ARGUMENTS, kwargs)
        _check_vocabulary(files)
        if files.path(_IMAGE_PROCESSOR_FILE):
            image_processor = Qwen2VLImageProcessorPil.from_pretrained(pretrained_model_name_or_path, **hub_arguments)
        else:
            vision = backbone_config(settings).vision_config
            assert isinstance(vision, PreTrainedConfig)  # the library makes one of a dictionary
            image_processor = Qwen2VLImageProcessorPil(
                patch_size=vision.patch_size,
                temporal_patch_size=vision.temporal_patch_size,
                merge_size=vision.spatial_merge_size,
                size=QWEN_IMAGE_SIZE,
            )
        tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **hub_arguments)
        reference = {"chat_template": CHAT_TEMPLATE, "training_turn_end": REFERENCE_TRAINING_TURN_END}
        return cls.from_args_and_dict([image_processor, tokenizer], reference, **processor_kwargs)

    @classmethod
    def from_backbone(cls, backbone: str | os.PathLike) -> "Blip3oProcessor":
        """
        For a new model on a backbone: the backbone's tokenizer, chat template and image processor (on PIL), with the
        token `[IMG]` added. Give it to [`Blip3oForConditionalGeneration.from_backbone`], which makes room for it.

        The chat template is changed where needed: the current date becomes a fixed date, contents that are strings are
        read and not dropped, and the first token is written if the template leaves it to the tokenizer. A tokenizer
        without a padding token pads with its end token. A backbone that already has a [`Blip3oProcessor`] keeps it.

        Args:
            backbone: folder or Hub id of any Hugging Face autoregressive model.

        Raises:
            ValueError: later, at the first image, when the image processor does not tell how many tokens it has.
        """
        if cls.get_processor_dict(backbone)[0].get("processor_class") == cls.__name__:
            return cls.from_pretrained(backbone)
        tokenizer = AutoTokenizer.from_pretrained(backbone)
        assert tokenizer is not None  # the library's type for a class that cannot be imported
        tokenizer.add_special_tokens({"additional_special_tokens": ["[IMG]"]}, replace_extra_special_tokens=False)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        settings = cls.get_processor_dict(backbone)[0]
        config = AutoConfig.from_pretrained(backbone)
        template = settings.get("chat_template") or tokenizer.chat_template
        if isinstance(template, str):
            template = fitted_template(template, tokenizer)
        if not has_vision(config):
            return cls(Qwen2VLImageProcessorPil(), tokenizer, chat_template=template)
        image_processor = AutoImageProcessor.from_pretrained(backbone, backend="pil")
        has_grids = "image_grid_thw" in image_processor.model_input_names
        return cls(
            image_processor,
            tokenizer,
            chat_template=template,
            num_image_tokens=None if has_grids else tokens_per_tile(config, settings),
            image_token=image_token_of(config, tokenizer),
        )

    @property
    def model_input_names(self) -> list[str]:
        return [*super().model_input_names, "token_type_ids" if self._has_crops else "mm_token_type_ids"]

    def __call__(self, *args, **kwargs) -> BatchFeature:
        """As in transformers: `images`, `text`, and settings of both."""
        inputs = super().__call__(*args, **kwargs)
        if self._has_crops and "mm_token_type_ids" in inputs:
            inputs["token_type_ids"] = inputs.pop("mm_token_type_ids")
        return inputs

    @property
    def unused_input_names(self) -> list[str]:
        return [*super().unused_input_names, *UNREAD]

    def prepare_inputs_layout(self, images=None, text=None, videos=None, audio=None, **kwargs):
        """As in transformers; where images are cut into tiles, they stay with their prompts."""
        images, text, *others = super().prepare_inputs_layout(
            images=images, text=text, videos=videos, audio=audio, **kwargs
        )
        is_tiled = hasattr(self.image_processor, "return_row_col_info")
        if is_tiled and images and text and not isinstance(images[0], (list, tuple)):
            remaining = iter(images)
            numbers = [sample.count(self.image_token) for sample in text]
            lists = [[image for _, image in zip(range(number), remaining, strict=False)] for number in numbers]
            images = [*lists, leftover] if (leftover := list(remaining)) else lists
        return images, text, *others

    def image_length(self, image_inputs: Mapping[str, Any], image_idx: int) -> int:
        """How many placeholders image `image_idx` has."""
        return self.replace_image_token(image_inputs, image_idx).count(self.image_token)

    def replace_image_token(self, image_inputs: Mapping[str, Any], image_idx: int, **kwargs) -> str:
        """The placeholders of image `image_idx`, with the marks around them."""
        return image_text(self, image_inputs, image_idx)

    def apply_chat_template(self, *args, **kwargs):
        """
        As in transformers, which runs the template where it can reach nothing but the messages.

        Raises:
            ValueError: when the template does not make a text of the messages.
        """
        return rendered(partial(super().apply_chat_template, *args, **kwargs))

    def _try_template(self) -> None:
        """Raise a `ValueError` unless the chat template makes a text of one message, and soon."""
        if isinstance(self.chat_template, str):
            try_template(self.chat_template, partial(super().apply_chat_template, add_generation_prompt=True))

    def render_prompt(self, caption: str, num_images: int = 0, history: Sequence[Mapping[str, Any]] = ()) -> str:
        """The chat text of one generation prompt, up to and without the token that starts the image."""
        content = self.instruction.replace("{caption}", caption)
        if num_images:  # otherwise a plain string, which templates of text-only backbones read, too
            content = [*[{"type": "image"}] * num_images, {"type": "text", "text": content}]
        messages = [*history, {"role": "user", "content": content}]
        return self.apply_chat_template(messages, add_generation_prompt=True)

    def _without_end(self, caption: str, num_tokens: int) -> str:
        """The caption without its last tokens; all of it where it has no more than these."""
        encoded = self.tokenizer(caption, return_offsets_mapping=True, verbose=False)
        starts = [start for start, _ in encoded["offset_mapping"]]
        return caption[: starts[-num_tokens]].rstrip() if num_tokens < len(starts) else caption

    def fitted_prompt(self, prompt: str) -> str:
        """A prompt without images, its end cut as training cuts it where `encode_prompts` would find it too long."""
        while self.max_prompt_length is not None:
            text = self.render_prompt(prompt) + self.image_start_token
            tokens = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            excess = len(tokens) - self.max_prompt_length
            shorter = self._without_end(prompt, excess) if excess > 0 else prompt
            if shorter in (prompt, ""):
                break
            prompt = shorter
        return prompt

    def encode_prompts(
        self,
        prompts: Sequence[str],
        images=None,
        raw: bool = False,
        training: bool = False,
        truncation: bool = False,
        histories: Sequence[Sequence[Mapping[str, Any]]] | None = None,
    ) -> BatchFeature:
        """
        Prompts for `encode_condition`: instruction, chat template, left padding, `[IMG]` at the end.

        Args:
            prompts: captions, one string each.
            images (*optional*): one list of input images per prompt (or one image per prompt).
            raw: take `prompts` as they are, with no instruction and no template (the reference's null prompt is
                the raw string `" "`).
            training: put `training_turn_end` before `[IMG]`; without effect on `raw` prompts.
            truncation: cut the end of a caption that is too long for the context, never its template; otherwise it
                is an error.
            histories (*optional*): for each prompt the chat messages before it, their images as
                `{"type": "image", "image": ...}`.

        Returns:
            `BatchFeature` with `input_ids` and `attention_mask` `[B, L]`, and image inputs where there are images.

        Raises:
            TypeError, ValueError: on a prompt that is not a string, is empty, or is longer than the context.
        """
        prompts = [prompts] if isinstance(prompts, str) else prompts
        _check_prompts(prompts, raw, self.image_token)
        image_lists = [[] for _ in prompts]
        if images is not None:
            image_lists = [list(item) if isinstance(item, (list, tuple)) else [item] for item in images]
        histories = [()] * len(prompts) if histories is None else histories
        for name, lists, empty in (
            ("images", image_lists, "a prompt without images"),
            ("histories", histories, "a prompt with nothing before it"),
        ):
            if len(lists) != len(prompts):
                raise ValueError(
                    f"`{name}` must hold one entry per prompt. Got {len(lists)} for {len(prompts)} prompts. Use an "
                    f"empty list for {empty}."
                )
        turn_end = self.training_turn_end if training else ""
        texts = [
            (prompt if raw else self.render_prompt(prompt, len(shown), history) + turn_end) + self.image_start_token
            for prompt, shown, history in zip(prompts, image_lists, histories, strict=True)
        ]
        flat = [
            image
            for shown, history in zip(image_lists, histories, strict=True)
            for image in (*message_images(history), *shown)
        ]
        inputs = self(
            text=texts,
            **({"images": flat} if flat else {}),
            padding=True,
            padding_side="left",
            add_special_tokens=False,
            return_tensors="pt",
            return_mm_token_type_ids=False,
        )
        excess = [0] * len(prompts)
        if self.max_prompt_length is not None:
            lengths = torch.as_tensor(inputs["attention_mask"]).sum(-1)
            excess = (lengths - self.max_prompt_length).clamp(min=0).tolist()
        if truncation and any(excess):
            shorter = [
                self._without_end(prompt, n) if n else prompt for prompt, n in zip(prompts, excess, strict=True)
            ]
            is_shorter = shorter != list(prompts)
            return self.encode_prompts(shorter, images, raw, training, truncation=is_shorter, histories=histories)
        if self.max_prompt_length is not None and any(excess):
            index = max(range(len(prompts)), key=excess.__getitem__)
            raise ValueError(
                f"A prompt must fit the context: at most {self.max_prompt_length} tokens with its template. Prompt "
                f"{index} has {self.max_prompt_length + excess[index]}. Shorten it: {prompts[index][:60]!r}..."
            )
        return BatchFeature({name: value for name, value in inputs.items() if name != "token_type_ids"})

    def unknown_words(self, text: str) -> list[str]:
        """
        The words of a text that the model never read, in their order; none where `has_whole_words` is not set.

        If a prompt has such words, the picture is drawn from the other words.
        """
        if not self.has_whole_words:
            return []
        backend = self.tokenizer.backend_tokenizer
        text = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
        words = []
        for _, (start, end) in backend.pre_tokenizer.pre_tokenize_str(text):
            word = text[start:end].strip()
            is_known = any(len(self.tokenizer.tokenize(form)) <= 1 for form in (word, f" {word}"))
            if any(map(str.isalnum, word)) and not is_known:
                words.append(word)
        return list(dict.fromkeys(words))

    def post_process_image_text_to_text(self, generated_outputs, skip_special_tokens=True, **kwargs) -> list[str]:
        """Decode the token ids `[B, L]` of `generate` to strings."""
        kwargs.pop("clean_up_tokenization_spaces", None)
        return self.tokenizer.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)

    def post_process_multimodal_output(
        self, generated_outputs, skip_special_tokens: bool = True, generation_mode: str | None = None, **kwargs
    ) -> list[str] | list[Image.Image]:
        """
        What `generate` returned, for people: token ids `[B, L]` to strings, and with `generation_mode="image"` pixels
        `[B, 3, H, W]` in [0, 1] to PIL images.
        """
        if generation_mode == "image":
            pixels = (generated_outputs.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
            return [Image.fromarray(image) for image in pixels.cpu().numpy()]
        return self.post_process_image_text_to_text(generated_outputs, skip_special_tokens, **kwargs)


def _check_prompts(prompts: Sequence[Any], raw: bool, image_token: str) -> None:
    """Raise a `TypeError` or `ValueError` when one of them is no string, says nothing, or stands for an image."""
    if not isinstance(prompts, Sequence):
        raise TypeError(f"Prompts must be a string or a list of strings. Got {type(prompts).__name__}. Pass a string.")
    if not prompts:
        raise ValueError("There must be at least one prompt. Got an empty list. Pass one string, or several.")
    check_unicode(prompts, "A prompt")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise TypeError(
                f"A prompt must be a string. Got {type(prompt).__name__}. Pass one string, or a list of strings."
            )
        if not prompt.strip() and not raw:
            raise ValueError(f"A prompt must say something. Got {prompt!r}. Describe the image to draw.")
        if image_token in prompt:
            raise ValueError(
                f"A prompt must hold no {image_token!r}, which stands for an image. Got {prompt!r:.60}. Leave it out; "
                f"images are given beside the prompt."
            )


__all__ = ["CHAT_TEMPLATE", "GENERATION_INSTRUCTION", "Blip3oProcessor", "message_images"]
