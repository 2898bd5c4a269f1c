"""What each training stage is judged by, and what completes its result: joins training to pipelines and evaluation."""

import re
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from peft import PeftModel
from PIL import Image

from ..evaluation.sheets import contact_sheet
from ..hub.cards import Origin, write_card
from ..models.decoder_patch import Blip3oPatchDecoder
from ..models.modeling_blip3o import Blip3oForConditionalGeneration
from ..pipelines.pipeline_blip3o import Blip3oPipeline, has_pipeline
from ..pipelines.pipeline_blip3o_decoder import Blip3oDecoderPipeline, has_decoder
from ..pipelines.published_pipeline import ORIGINAL_DECODER
from ..schedulers.scheduling_feature_flow import Blip3oFlowScheduler
from ..shapes import benchmark
from ..training.distributed import whole_weights
from ..training.stages import GenerationStage, Stage
from ..training.trainer import Evaluator
from .files import save_picture

_SAMPLES = re.compile(r"samples-(\d+)\.png")


def build_pipeline(stage: GenerationStage, model) -> Blip3oPipeline:
    """The pipeline around the model that a generation stage trains, with the sampling settings of its recipe."""
    settings = stage.recipe.evaluation
    names = {name: name if name == "plan_top_p" else f"default_{name}" for name in stage.sampling_keys}
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    parts = {"model": model, "processor": stage.processor}
    parts |= {names[name]: settings[name] for name in names if name in settings}
    if "decoder" in stage.folders:
        parts |= _decoder_parts(stage.folders["decoder"], stage.frozen_dtype)
    if "model" in stage.folders and _is_pipeline(stage.folders["model"]):
        return Blip3oPipeline.from_pretrained(stage.folders["model"], **parts)
    scheduler = Blip3oFlowScheduler(shift=model.config.noise_shift, integer_timesteps=False)
    return Blip3oPipeline(scheduler=scheduler, **parts)


def _is_pipeline(place: str) -> bool:
    """Names on the Hub are taken to be, and a folder is with more than the model."""
    return not Path(place).is_dir() or has_pipeline(place)


def _decoder_parts(folder: str, dtype: torch.dtype) -> dict[str, torch.nn.Module]:
    """The parts of a pipeline that a decoder gives: by diffusion (also of a published BLIP3-o), a VAE or patches."""
    for subfolder in (ORIGINAL_DECODER, None):
        if has_decoder(folder, **({"subfolder": subfolder} if subfolder else {})):
            decoder = Blip3oDecoderPipeline.from_pretrained(folder, subfolder=subfolder, torch_dtype=dtype)
            return {"unet": decoder.unet, "vae": decoder.vae, "decoder_scheduler": decoder.scheduler}
    is_vae = Blip3oPatchDecoder.load_config(folder)["_class_name"] == AutoencoderKL.__name__
    return {"decoder": (AutoencoderKL if is_vae else Blip3oPatchDecoder).from_pretrained(folder).eval()}


def _draw_prompts(stage: GenerationStage, model) -> Image.Image:
    """A sheet of what the recipe's own prompts give, with the same noise every time."""
    prompts = stage.recipe.evaluation["prompts"]
    pipe = build_pipeline(stage, model)
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(index) for index in range(len(prompts))]
    images = pipe(prompts, generator=generators).images
    return contact_sheet(images, prompts, columns=min(8, len(prompts)), size=128)


def evaluation_for(stage: Stage, folder: Path) -> Evaluator | None:
    """
    The evaluation of a stage: called with the model and the step, it returns rates and a sheet of samples, `samples`,
    which it also writes.

    `None` where there is nothing to draw or to score.
    """
    settings = stage.recipe.evaluation
    if "prompts" in settings:

        def evaluate(model, step):
            sheet = _draw_prompts(stage, model)
            if stage.arguments.process_index == 0:
                save_picture(sheet, folder / f"samples-{step}.png")
            return {"samples": sheet}

        return evaluate
    if not stage.is_world:
        return (lambda model, step: {}) if "sources" in settings else None
    if isinstance(stage, GenerationStage) and stage.draws:
        prompts = benchmark.held_out_prompts(settings.get("per_family", 16), seed=1)

        def evaluate(model, step):
            pipe = build_pipeline(stage, model)
            rates, drawing, _ = benchmark.score_generation(pipe, prompts, seed=1)
            shown = range(0, len(prompts), max(1, len(prompts) // 32))
            sheet = contact_sheet(
                [Image.fromarray(drawing.images[i]) for i in shown],
                [prompts[i].text for i in shown],
                columns=8,
                size=128,
            )
            if stage.arguments.process_index == 0:
                save_picture(sheet, folder / f"samples-{step}.png")
            scores = {name: rate.value for name, rate in {**rates, "overall": benchmark.overall(rates)}.items()}
            scores["samples"] = sheet
            if "per_kind" in settings:
                answers = benchmark.score_understanding(model, stage.processor, settings["per_kind"], seed=1)
                scores["understanding"] = benchmark.overall(answers).value
            return scores

        return evaluate
    if stage.name in ("understanding", "alignment"):

        def evaluate(model, step):
            rates = benchmark.score_understanding(model, stage.processor, settings.get("per_kind", 32), seed=1)
            return {name: rate.value for name, rate in {**rates, "overall": benchmark.overall(rates)}.items()}

        return evaluate
    if stage.name == "decoder":
        prompts = benchmark.held_out_prompts(settings.get("per_family", 16), seed=1)

        def evaluate(model, step):
            rates = benchmark.ceiling_rates(
                stage.encoder, stage.image_processor, lambda features: model(features).sample, prompts, seed=1
            )
            return {name: rate.value for name, rate in {**rates, "overall": benchmark.overall(rates)}.items()}

        return evaluate
    return None


def finish_result(stage: Stage, folder: Path, origin: Origin | None = None) -> None:
    """
    After generation or joint training: write the whole pipeline, target encoder and card included, to
    `folder`/pipeline.

    Not after LoRA, which leaves adapters for the pipeline of the model that it adapted.
    """
    if not isinstance(stage, GenerationStage) or not stage.draws or stage.lora is not None:
        return
    with whole_weights(stage.arguments):
        model = Blip3oForConditionalGeneration.from_pretrained(folder)
    build_pipeline(stage, model).save_pretrained(folder / "pipeline")
    if stage.encoder is None:
        stage.load_encoder()
    stage.encoder.save_pretrained(folder / "pipeline" / "target_encoder")
    stage.image_processor.save_pretrained(folder / "pipeline" / "target_encoder")
    picture = _newest_samples(folder)
    if picture is not None:
        shutil.copyfile(picture, folder / "pipeline" / "samples.png")
    write_card(folder / "pipeline", origin, picture=picture and "samples.png")


def _newest_samples(folder: Path) -> Path | None:
    """The sheet that the evaluation drew last."""
    steps = {int(match[1]): path for path in folder.glob("samples-*.png") if (match := _SAMPLES.match(path.name))}
    return steps[max(steps)] if steps else None
