"""Finds records that a model cannot learn from when they are read, so that they are counted as bad items."""

from functools import cached_property

from PIL import Image
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

from ..checkpoints.published_config import is_published
from ..data.records import RECONSTRUCT, BadItem, Record
from ..data.texts import CONTROL_TOKENS, text_problem
from .configuration_blip3o import Blip3oConfig
from .processing_blip3o import Blip3oProcessor, message_images


class RecordCheck:
    """
    Whether a model's processor, and training after it, can take a record: an error in a batch would have no address.

    Args:
        processor: that of the model; its `max_prompt_length` is the longest prompt.
        max_length: longest conversation in tokens; training cuts what is longer.
        reads_images: whether the backbone does.

    Example:
        >>> check = RecordCheck(processor, max_length=512)  # doctest: +SKIP
        >>> open_mixture(settings, complete=lambda identity, record: check(decoded(record)))  # doctest: +SKIP
    """

    def __init__(self, processor: Blip3oProcessor, max_length: int | None = None, reads_images: bool = True):
        self.processor = processor
        self.max_length = max_length
        self.reads_images = reads_images

    def __call__(self, record: Record) -> Record:
        """
        The record, when it can be learned from.

        Args:
            record: its images decoded.

        Raises:
            BadItem: when its texts hold special tokens, its images have impossible shapes or cannot be read at all, or
                they leave no room for the prompt or the first answer.
        """
        self.check_texts(record)
        if not self.reads_images and self._images(record):
            raise BadItem(record.key, "it has input images, and the model's backbone reads text only")
        if record.turns:
            length, limit, what = self.answer_start(record) + 1, self.max_length, "the first answer"
        else:
            length, limit, what = self._shortest_prompt(record), self.processor.max_prompt_length, "the prompt"
        if limit is not None and length > limit:
            raise BadItem(
                record.key,
                f"no room for {what}: with everything before it, at least {length} tokens are needed, and there are "
                f"{limit}; raise `max_length`, or give less text or smaller images",
            )
        return record

    def check_texts(self, record: Record) -> None:
        """
        Args:
            record: its images may be encoded.

        Raises:
            BadItem: when its texts hold special tokens.
        """
        for text in (record.prompt or "", *(text for turn in record.turns for text in turn)):
            if problem := text_problem(text, self.special_tokens):
                raise BadItem(record.key, problem)

    @cached_property
    def special_tokens(self) -> tuple[str, ...]:
        """All that the tokenizer does not read as text."""
        tokenizer = self.processor.tokenizer
        added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        image_tokens = (self.processor.image_token, self.processor.image_start_token)
        return tuple(dict.fromkeys((*CONTROL_TOKENS, *image_tokens, *(token for token in added if len(token) > 2))))

    def answer_start(self, record: Record) -> int:
        """How many tokens of a conversation stand before its first answer, those of images included."""
        return self._length(self._messages(record)[: 1 - 2 * len(record.turns)], record, True)

    def is_cut(self, record: Record) -> bool:
        """Whether training cuts the end of a conversation, or of a caption."""
        if record.turns:
            length = self._length(self._messages(record), record, False)
            return self.max_length is not None and length > self.max_length
        limit = self.processor.max_prompt_length
        return limit is not None and self._prompt_length(record, record.prompt or RECONSTRUCT) > limit

    def _messages(self, record: Record) -> list[dict]:
        (question, answer), *further = record.turns
        content = [*[{"type": "image"}] * len(record.images), {"type": "text", "text": question}]
        texts = [content if record.images else question, answer, *(text for turn in further for text in turn)]
        roles = ("user", "assistant") * len(record.turns)
        return [*record.history, *({"role": role, "content": text} for role, text in zip(roles, texts, strict=True))]

    def _length(self, messages: list[dict], record: Record, is_open: bool) -> int:
        text = self.processor.apply_chat_template(messages, add_generation_prompt=is_open)
        return self._tokens(text if is_open else text.rstrip("\n")) + self._image_tokens(record)

    def _shortest_prompt(self, record: Record) -> int:
        """Tokens of a prompt whose caption is cut to its first token."""
        return self._prompt_length(record, "a")

    def _prompt_length(self, record: Record, caption: str) -> int:
        """Tokens of a record's prompt in training, with a caption in the place of its own."""
        text = self.processor.render_prompt(caption, len(record.images), record.history)
        text += self.processor.training_turn_end + self.processor.image_start_token
        return self._tokens(text) + self._image_tokens(record)

    def _tokens(self, text: str) -> int:
        return len(self.processor.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _image_tokens(self, record: Record) -> int:
        """How many more tokens the images of a record have than their places in its text."""
        try:
            return sum(self._tokens_of(image) - 1 for image in self._images(record))
        except ValueError as error:
            raise BadItem(record.key, f"an input image cannot be read: {error}") from error

    def _tokens_of(self, image: Image.Image) -> int:
        image_processor = self.processor.image_processor
        if self.processor.num_image_tokens is not None:
            return self.processor.num_image_tokens
        if hasattr(image_processor, "get_number_of_image_patches") and hasattr(image_processor, "merge_size"):
            patches = image_processor.get_number_of_image_patches(image.height, image.width, {})
            return int(patches) // image_processor.merge_size**2
        return self.processor.image_length(image_processor([image], return_tensors="pt"), 0)

    @staticmethod
    def _images(record: Record) -> list[Image.Image]:
        return [*message_images(record.history), *record.images]


def check_for_model(folder: str, max_length: int | None = None) -> RecordCheck:
    """
    The check for a model that is to train on data: a BLIP3-o, or a backbone that a new one is to be built on.

    Args:
        folder: of the model, or its Hub id.
        max_length: that of the recipe. Default: the longest text of its tokenizer.
    """
    stored, _ = PreTrainedConfig.get_config_dict(folder)
    if stored.get("model_type") == Blip3oConfig.model_type or is_published(folder):
        config, processor = Blip3oConfig.from_pretrained(folder), Blip3oProcessor.from_pretrained(folder)
    else:
        config = Blip3oConfig(backbone_config=AutoConfig.from_pretrained(folder))
        processor = Blip3oProcessor.from_backbone(folder)
    max_length = processor.tokenizer.model_max_length if max_length is None else max_length
    processor.max_prompt_length = max_length - config.num_queries
    return RecordCheck(processor, max_length, config.has_vision)
