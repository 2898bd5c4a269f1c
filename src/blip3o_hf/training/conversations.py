"""Conversations as inputs and labels: only answers are learned."""

from collections.abc import Sequence

import torch

from ..data.records import Record
from ..models.processing_blip3o import Blip3oProcessor, message_images

IGNORED = -100


def num_answer_tokens(labels: torch.Tensor) -> torch.Tensor:
    """How many tokens of `labels` `[B, L]` are learned: a count `[]` on their device. What the first says is none."""
    return (labels[:, 1:] != IGNORED).sum()


class Conversations:
    """
    Turns records of understanding into batches for the backbone.

    Args:
        processor: of the backbone that answers; its chat template must be ChatML.
        max_length: longest conversation in tokens; the end of a longer one is cut.

    Raises:
        ValueError: when the tokenizer does not know the marks of ChatML.
    """

    def __init__(self, processor: Blip3oProcessor, max_length: int):
        if "<|im_end|>" not in processor.tokenizer.get_vocab():
            raise ValueError(
                "Conversations are learned in ChatML, with turns between <|im_start|> and <|im_end|>. The backbone's "
                "tokenizer does not know these. Use a backbone such as Qwen2.5-VL, or the stage 'generation'."
            )
        self.processor = processor
        self.max_length = max_length

    def collate(self, records: Sequence[Record]) -> dict[str, torch.Tensor]:
        """
        A batch for the backbone, with labels.

        Raises:
            ValueError: when the images of a record alone do not fit `max_length`.
        """
        shown = [[*message_images(record.history), *record.images] for record in records]
        images = [image for images_of_record in shown for image in images_of_record]
        pixels = self.processor.image_processor(images, return_tensors="pt") if images else {}
        encoded, first = [], 0
        for record, images_of_record in zip(records, shown, strict=True):
            slots = [self.processor.replace_image_token(pixels, first + i) for i in range(len(images_of_record))]
            first += len(images_of_record)
            encoded.append(self.encode(record, slots))
        longest = max(len(ids) for ids, _ in encoded)
        pad = self.processor.tokenizer.pad_token_id
        input_ids = torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in encoded])
        labels = torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in encoded])
        lengths = torch.tensor([len(ids) for ids, _ in encoded])
        batch = {
            "input_ids": input_ids,
            "attention_mask": (torch.arange(longest) < lengths[:, None]).long(),
            "labels": labels,
            **pixels,
        }
        if self.processor.num_image_tokens is None:  # backbones with positions in rows and columns tell images by it
            image_token_id = self.processor.image_token_id
            assert isinstance(image_token_id, int)  # the id of one token
            batch["mm_token_type_ids"] = (input_ids == image_token_id).int()
        return batch

    def encode(self, record: Record, slots: Sequence[str]) -> tuple[list[int], list[int]]:
        """
        Token ids of a conversation, and labels for the assistant's words and the token that ends its turn.

        Args:
            record: of understanding; its images come before the first question, and after the earlier turns.
            slots: the placeholders of each image, those of the earlier turns first.
        """
        (question, answer), *further = record.turns
        content = [*[{"type": "image"}] * len(record.images), {"type": "text", "text": question}]
        asked = {"role": "user", "content": content if record.images else question}
        messages = [*record.history, asked]
        opening = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        texts = opening.split(self.processor.image_token)
        opening = "".join(part for pair in zip(texts, [*slots, ""], strict=True) for part in pair)
        parts = [opening, answer + "<|im_end|>"]
        for question, answer in further:
            parts += [f"\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n", answer + "<|im_end|>"]
        ids: list[int] = []
        labels: list[int] = []
        tokenized = self.processor.tokenizer(parts, add_special_tokens=False)["input_ids"]
        for index, part_ids in enumerate(tokenized):
            ids += part_ids
            labels += part_ids if index % 2 else [IGNORED] * len(part_ids)
        self._label_images(record, ids, labels)
        if self.processor.image_token_id in ids[self.max_length :]:
            raise ValueError(
                f"The images of a conversation must fit `max_length`, {self.max_length} tokens. Those of {record.key} "
                f"do not. Raise it, or give smaller images."
            )
        return ids[: self.max_length], labels[: self.max_length]

    def _label_images(self, record: Record, ids: list[int], labels: list[int]) -> None:
        """Let the tokens of the record's own images, the last ones, say their words."""
        words = [word for words_of_image in record.image_words for word in words_of_image]
        if not words:
            return
        positions = [index for index, token in enumerate(ids) if token == self.processor.image_token_id][-len(words) :]
        tokens = self.processor.tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
        for position, token in zip(positions, tokens, strict=True):
            labels[position + 1] = token[0]  # what a token says is the label of the next position
