"""BLIP3-o as a native Hugging Face model: one model that understands and draws.

Importing the package costs milliseconds; every name below is imported on first use, and transformers and diffusers
learn about it as soon as they are imported.
"""

from importlib import import_module

from . import registration

__version__ = "0.1.0"

_EXPORTS = {
    "Blip3oConfig": "models.configuration_blip3o",
    "Blip3oForConditionalGeneration": "models.modeling_blip3o",
    "Blip3oProcessor": "models.processing_blip3o",
    "Blip3oTransformer2DModel": "models.transformer_next_dit",
    "Blip3oPatchDecoder": "models.decoder_patch",
    "EvaClipImageProcessor": "models.image_processing_eva_clip",
    "EvaClipVisionConfig": "models.configuration_eva_clip",
    "EvaClipVisionModel": "models.modeling_eva_clip",
    "Blip3oFlowScheduler": "schedulers.scheduling_feature_flow",
    "Blip3oPipeline": "pipelines.pipeline_blip3o",
    "Blip3oPipelineOutput": "pipelines.pipeline_blip3o",
    "Blip3oTextToImagePipeline": "pipelines.text_to_image",
    "Blip3oDecoderPipeline": "pipelines.pipeline_blip3o_decoder",
    "Blip3oFeatureDecoder": "pipelines.decoders",
    "Blip3oChat": "pipelines.chat",
    "Blip3oReply": "pipelines.chat",
    "Blip3oReconstructionPipeline": "pipelines.reconstruction",
    "interpolate": "pipelines.reconstruction",
    "Blip3oTrainer": "training.trainer",
    "Blip3oTrainingArguments": "training.arguments",
    "finetune": "training.finetune",
    "register_objective": "objectives",
    "packaged_model_path": "assets",
    "push_folder": "hub.push",
}

# diffusers finds out how to load a component by looking for its base class here.
_LIBRARY_BASES = {
    "ModelMixin": "diffusers",
    "SchedulerMixin": "diffusers",
    "DiffusionPipeline": "diffusers",
    "PreTrainedModel": "transformers",
    "ProcessorMixin": "transformers",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str):
    if name in _EXPORTS:
        module = import_module(f".{_EXPORTS[name]}", __name__)
    elif name in _LIBRARY_BASES:
        module = import_module(_LIBRARY_BASES[name])
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


registration.register()
