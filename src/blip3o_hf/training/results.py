"""What a run leaves: whole repositories, with the parts that did not train, the card and the samples."""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, LCMScheduler
from peft import PeftModel
from PIL import Image
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers.utils import logging

from ..checkpoints.decoder_files import has_decoder
from ..checkpoints.published_names import PUBLISHED_DECODER
from ..evaluation.sheets import contact_sheet
from ..files import expanded, written_whole
from ..hub.cards import CARD, write_card
from ..models.decoder_patch import Blip3oPatchDecoder
from ..models.modeling_blip3o import Blip3oForConditionalGeneration
from ..models.processing_blip3o import Blip3oProcessor
from ..pipelines.pipeline_blip3o import Blip3oPipeline, has_pipeline
from ..pipelines.pipeline_blip3o_decoder import Blip3oDecoderPipeline
from ..schedulers.scheduling_feature_flow import Blip3oFlowScheduler

if TYPE_CHECKING:
    from .trainer import Blip3oTrainer

logger = logging.get_logger(__name__)

_SAMPLES = re.compile(r"samples-(\d+)\.png")
TARGET_ENCODER = "target_encoder"
DRAWN_AT_ONCE = {"default_plan": False, "default_num_attempts": 1, "plan_top_p": None}
"""Of the pipeline of a model that learned other data: its backbone cannot plan these pictures, nor check them."""
FLOW_MAP = {"default_num_inference_steps": 4, "default_guidance_scale": 1.0}
"""Of the pipeline of a flow map: it learned what guidance does."""
FEW_STEPS = {"default_decoder_num_inference_steps": 4, "default_decoder_guidance_scale": 1.0}
"""Of a diffusion decoder that learned to draw in a few steps."""


def assemble_pipeline(
    model: Blip3oForConditionalGeneration | PeftModel,
    processor: Blip3oProcessor,
    decoder: str | os.PathLike | nn.Module | None = None,
    settings: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Blip3oPipeline:
    """
    The pipeline around a model that trains.

    Args:
        model: the parts that it lacks are those of the repository that it was loaded from, if that is one.
        processor: of the model.
        decoder: folder of a decoder, or one; by default that of the repository.
        settings: of the pipeline, such as `default_num_inference_steps`.
        dtype: of a decoder that is loaded.
    """
    if isinstance(model, PeftModel):
        base_model = model.get_base_model()
        assert isinstance(base_model, Blip3oForConditionalGeneration)  # what adapters are on is one, too
        model = base_model
    parts: dict[str, Any] = dict(FLOW_MAP) if model.config.is_flow_map else {}
    if isinstance(decoder, nn.Module):
        parts["decoder"] = decoder
    elif decoder is not None:
        parts |= _decoder_parts(os.fspath(expanded(decoder)), dtype)
    parts |= {"model": model, "processor": processor, **(settings or {})}
    if model.name_or_path and has_pipeline(model.name_or_path):
        pipe = Blip3oPipeline.from_pretrained(model.name_or_path, **parts)
    else:
        scheduler = Blip3oFlowScheduler(shift=model.config.noise_shift, integer_timesteps=False)
        pipe = Blip3oPipeline(scheduler=scheduler, **parts)
    if model.config.is_flow_map:
        pipe.scheduler = Blip3oFlowScheduler.from_config(pipe.scheduler.config, solver="euler")
    if isinstance(model, FSDPModule):  # FSDP2 gives every model a class of its own, which no other program knows
        pipe.register_to_config(model=(pipe.library, Blip3oForConditionalGeneration.__name__))
    return pipe


def _decoder_parts(folder: str, dtype: torch.dtype) -> dict[str, Any]:
    """
    The parts of a pipeline that a decoder gives: by diffusion (also of a published BLIP3-o), a VAE or patches; and how
    one of few steps is sampled.
    """
    if has_pipeline(folder) and os.path.isdir(os.path.join(folder, "decoder")):
        folder = os.path.join(folder, "decoder")
    for subfolder in (PUBLISHED_DECODER, None):
        if has_decoder(folder, **({"subfolder": subfolder} if subfolder else {})):
            decoder = Blip3oDecoderPipeline.from_pretrained(folder, subfolder=subfolder, torch_dtype=dtype)
            parts = {"unet": decoder.unet, "vae": decoder.vae, "decoder_scheduler": decoder.scheduler}
            return {**parts, **(FEW_STEPS if isinstance(decoder.scheduler, LCMScheduler) else {})}
    is_vae = Blip3oPatchDecoder.load_config(folder)["_class_name"] == AutoencoderKL.__name__
    return {"decoder": (AutoencoderKL if is_vae else Blip3oPatchDecoder).from_pretrained(folder).eval()}


def draw_prompts(pipe: Blip3oPipeline, prompts: Sequence[str]) -> Image.Image:
    """A sheet of what prompts give, with the same noise every time. Prompts too long for the model are shortened."""
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(index) for index in range(len(prompts))]
    images = pipe(fitted_prompts(pipe.processor, prompts), generator=generators).images
    return contact_sheet(images, prompts, columns=min(8, len(prompts)), size=128)


def fitted_prompts(processor: Blip3oProcessor, prompts: Sequence[str]) -> list[str]:
    """Prompts that the model can read: the end of a longer one is cut as in training, with a warning."""
    fitted = [processor.fitted_prompt(prompt) for prompt in prompts]
    for prompt, shorter in zip(prompts, fitted, strict=True):
        if shorter != prompt:
            logger.warning_once(
                f"A prompt must fit the model: at most {processor.max_prompt_length} tokens with its template. "
                f"{prompt[:60]!r}... is longer: samples are drawn from its beginning, up to {shorter[-40:]!r}."
            )
    return fitted


def save_samples(sheet: Image.Image, folder: str | os.PathLike, step: int) -> Path:
    """Write a sheet of samples of a step, whole or not at all."""
    path = Path(folder, f"samples-{step}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        sheet.save(temporary)
    return path


def newest_samples(folder: str | os.PathLike) -> Path | None:
    """The sheet that was drawn last."""
    steps = {
        int(match[1]): path for path in Path(folder).glob("samples-*.png") if (match := _SAMPLES.match(path.name))
    }
    return steps[max(steps)] if steps else None


def write_part(
    trainer: "Blip3oTrainer", folder: Path, weights: dict[str, torch.Tensor] | None, is_result: bool = True
) -> None:
    """
    Write what trained, as its own class reads it, and its card; a card that a person wrote there is kept.

    Args:
        trainer: that has trained it.
        folder: where to.
        weights: the state dict of the model.
        is_result: whether it is a result, or a checkpoint to go on from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    card = folder / CARD
    before = card.read_bytes() if card.exists() else None
    save = trainer.task.save if is_result else trainer.task.save_checkpoint
    save(trainer.unwrapped_model, folder, weights)
    if before is not None:  # PEFT changes a card that is there, and else leaves one of its own
        card.write_bytes(before)
    write_card(folder, trainer.origin, replace=before is None)


def write_repository(
    trainer: "Blip3oTrainer", folder: Path, weights: dict[str, torch.Tensor] | None, earlier: Path | None = None
) -> None:
    """
    Write a whole repository that draws: the pipeline around the model, the target encoder, the card and the samples.

    Args:
        trainer: whose model draws.
        folder: where to.
        weights: the state dict of the model.
        earlier: a repository of the same run, whose frozen weights are shared (hard links) and not written again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pipe = trainer.pipeline()
    parts = {name: part for name, part in pipe.components.items() if part is not None and name != "model"}
    parts[TARGET_ENCODER] = trainer.target_encoder()
    for name, part in parts.items():
        if hasattr(part, "save_pretrained"):
            _put(part, folder / name, earlier and earlier / name)
    pipe.model.save_pretrained(folder / "model", state_dict=weights)
    pipe.save_config(folder)
    pipe.write_root(folder)
    samples = newest_samples(trainer.samples_folder)
    if samples is not None:
        shutil.copyfile(samples, folder / "samples.png")
    write_card(folder, trainer.origin, picture=None if samples is None else "samples.png")


def _put(part: Any, folder: Path, earlier: Path | None) -> None:
    """Write a part, or share the weights of one that was written before."""
    if earlier is None or not earlier.is_dir():
        part.save_pretrained(folder)
    elif earlier != folder:
        shutil.copytree(earlier, folder, copy_function=_share, dirs_exist_ok=True)


def _share(source: str, target: str) -> None:
    """Weights as a hard link, where the disk can; settings, which a person may edit, as a copy."""
    Path(target).unlink(missing_ok=True)
    if source.endswith(".safetensors"):
        try:
            os.link(source, target)
            return
        except OSError:  # another disk, or one without links
            pass
    shutil.copyfile(source, target)


__all__ = ["assemble_pipeline", "draw_prompts", "newest_samples", "save_samples", "write_part", "write_repository"]
