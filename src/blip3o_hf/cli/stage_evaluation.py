"""What each training stage is judged by, and what completes its result: joins training to pipelines and evaluation."""

from collections.abc import Callable
from pathlib import Path

from peft import PeftModel
from PIL import Image

from ..evaluation import shapes
from ..evaluation.sheets import contact_sheet
from ..models.decoder_patch import Blip3oPatchDecoder
from ..pipelines.pipeline_blip3o import Blip3oPipeline
from ..schedulers.scheduling_feature_flow import Blip3oFlowScheduler
from ..training.distributed import whole_weights
from ..training.stages import GenerationStage, Stage
from .files import save_picture


def build_pipeline(stage: Stage, model) -> Blip3oPipeline:
    """The pipeline around the model that a generation stage trains, with the sampling settings of its recipe."""
    settings = stage.recipe.evaluation
    return Blip3oPipeline(
        model=model.get_base_model() if isinstance(model, PeftModel) else model,
        processor=stage.processor,
        scheduler=Blip3oFlowScheduler(shift=model.config.noise_shift, integer_timesteps=False),
        decoder=Blip3oPatchDecoder.from_pretrained(stage.recipe.inputs["decoder"]).eval(),
        default_num_inference_steps=settings.get("num_inference_steps", 30),
        default_guidance_scale=settings.get("guidance_scale", 3.0),
    )


def evaluation_for(stage: Stage, folder: Path) -> Callable | None:
    """
    The evaluation of a stage: called with the model and the step, it returns rates and writes a sample sheet.

    `None` for the encoder, which the decoder's reconstructions judge.
    """
    settings = stage.recipe.evaluation
    if isinstance(stage, GenerationStage):
        prompts = shapes.held_out_prompts(settings.get("per_family", 16), seed=1)

        def evaluate(model, step):
            pipe = build_pipeline(stage, model)
            rates, images = shapes.score_generation(pipe, prompts, seed=1)
            shown = range(0, len(prompts), max(1, len(prompts) // 32))
            if stage.arguments.process_index == 0:
                sheet = contact_sheet(
                    [Image.fromarray(images[i]) for i in shown], [prompts[i].text for i in shown], columns=8, size=128
                )
                save_picture(sheet, folder / f"samples-{step}.png")
            scores = {name: rate.value for name, rate in {**rates, "overall": shapes.overall(rates)}.items()}
            if "per_kind" in settings:
                answers = shapes.score_understanding(model, stage.processor, settings["per_kind"], seed=1)
                scores["understanding"] = shapes.overall(answers).value
            return scores

        return evaluate
    if stage.name == "understanding":

        def evaluate(model, step):
            rates = shapes.score_understanding(model, stage.processor, settings.get("per_kind", 32), seed=1)
            return {name: rate.value for name, rate in {**rates, "overall": shapes.overall(rates)}.items()}

        return evaluate
    if stage.name == "decoder":
        prompts = shapes.held_out_prompts(settings.get("per_family", 16), seed=1)

        def evaluate(model, step):
            rates = shapes.ceiling_rates(
                stage.encoder, stage.image_processor, lambda features: model(features).sample, prompts, seed=1
            )
            return {name: rate.value for name, rate in {**rates, "overall": shapes.overall(rates)}.items()}

        return evaluate
    return None


def finish_result(stage: Stage, folder: Path) -> None:
    """
    After generation or joint training: write the whole pipeline, target encoder included, to `folder`/pipeline.

    Not after LoRA, which leaves adapters for the pipeline of the model that it adapted.
    """
    if not isinstance(stage, GenerationStage) or stage.lora is not None:
        return
    from ..models.modeling_blip3o import Blip3oForConditionalGeneration

    with whole_weights(stage.arguments):
        model = Blip3oForConditionalGeneration.from_pretrained(folder)
    build_pipeline(stage, model).save_pretrained(folder / "pipeline")
    stage.encoder.save_pretrained(folder / "pipeline" / "target_encoder")
    stage.image_processor.save_pretrained(folder / "pipeline" / "target_encoder")
