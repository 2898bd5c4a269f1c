"""The stage `decoder`: from features to the pixels they came from, in one pass."""

from functools import cached_property

import torch

from ...models.decoder_patch import Blip3oPatchDecoder
from ...models.target_encoder import TargetEncoder
from ..inputs import load_encoder
from ..recipe_values import hints_of
from ..tasks.decoder import DecoderTask
from .base import Stage


class DecoderStage(Stage):
    """
    A patch decoder: a new one on the encoder in `inputs`, or that of the BLIP3-o in `inputs.model`.

    Recolouring teaches it that any shape may have any colour, which training images may not show.
    """

    name = "decoder"
    optional_inputs = ("encoder", "model")
    size_keys = ("patch_size", "dim", "num_layers", "num_attention_heads")
    task_keys = ("feature_noise", "recolor_rate")
    model_keys = (*size_keys, *task_keys)
    types = {
        "model": {
            **hints_of(Blip3oPatchDecoder.__init__, *size_keys),
            **hints_of(DecoderTask.__init__, *task_keys),
        }
    }
    scores = ("decoding",)

    def __init__(self, recipe):
        super().__init__(recipe)
        if len(recipe.inputs) != 1:
            raise ValueError(
                f"Stage 'decoder' starts from an encoder or from a whole model. {self.recipe_name} names "
                f"{'both' if recipe.inputs else 'neither'}. Put one of 'encoder' and 'model' under 'inputs'."
            )
        self._check_sizes_kept("decoder", "encoder")

    @cached_property
    def _encoder(self) -> TargetEncoder:
        return load_encoder(self.folders.get("encoder") or self.folders["model"], "", 8, self.arguments)

    def target_encoder(self):
        return self._encoder

    def build(self):
        if "model" in self.folders:
            folder = self.folders["model"]
            return Blip3oPatchDecoder.from_pretrained(folder, subfolder="decoder", torch_dtype=torch.float32), None
        channels = self._encoder.model.config.hidden_size
        return Blip3oPatchDecoder(in_channels=channels, **self._given(self.size_keys)), None

    def task(self):
        return DecoderTask(**self._given(self.task_keys))

    def score(self, trainer):
        assert self.benchmark is not None  # else the Trainer asks for no scores
        return self.benchmark.decoding(trainer.task.target_encoder, trainer.unwrapped_model)
