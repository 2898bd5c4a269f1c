"""BLIP3-o as a native Hugging Face model: one model that understands and draws.

Importing the package costs milliseconds; every name below is imported on first use, and transformers and diffusers
learn about it as soon as they are imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from . import registration

__version__ = "0.2.0"

if TYPE_CHECKING:  # The same names, for type checkers, editors and the API reference.
    from .assets import packaged_model_path as packaged_model_path
    from .hub.push import push_folder as push_folder
    from .models.configuration_blip3o import Blip3oConfig as Blip3oConfig
    from .models.configuration_eva_clip import EvaClipVisionConfig as EvaClipVisionConfig
    from .models.decoder_patch import Blip3oPatchDecoder as Blip3oPatchDecoder
    from .models.image_processing_eva_clip import EvaClipImageProcessor as EvaClipImageProcessor
    from .models.modeling_blip3o import Blip3oForConditionalGeneration as Blip3oForConditionalGeneration
    from .models.modeling_eva_clip import EvaClipVisionModel as EvaClipVisionModel
    from .models.processing_blip3o import Blip3oProcessor as Blip3oProcessor
    from .models.transformer_next_dit import Blip3oTransformer2DModel as Blip3oTransformer2DModel
    from .objectives import register_objective as register_objective
    from .pipelines.chat import Blip3oChat as Blip3oChat
    from .pipelines.chat import Blip3oReply as Blip3oReply
    from .pipelines.decoders import Blip3oFeatureDecoder as Blip3oFeatureDecoder
    from .pipelines.pipeline_blip3o import Blip3oPipeline as Blip3oPipeline
    from .pipelines.pipeline_blip3o import Blip3oPipelineOutput as Blip3oPipelineOutput
    from .pipelines.pipeline_blip3o_decoder import Blip3oDecoderPipeline as Blip3oDecoderPipeline
    from .pipelines.reconstruction import Blip3oReconstructionPipeline as Blip3oReconstructionPipeline
    from .pipelines.reconstruction import interpolate as interpolate
    from .pipelines.text_to_image import Blip3oTextToImagePipeline as Blip3oTextToImagePipeline
    from .preference.flow_dpo import FlowDPOConfig as FlowDPOConfig
    from .preference.flow_dpo import FlowDPOTrainer as FlowDPOTrainer
    from .preference.flow_grpo import FlowGRPOConfig as FlowGRPOConfig
    from .preference.flow_grpo import FlowGRPOTrainer as FlowGRPOTrainer
    from .preference.flow_nft import FlowNFTConfig as FlowNFTConfig
    from .preference.flow_nft import FlowNFTTrainer as FlowNFTTrainer
    from .schedulers.scheduling_feature_flow import Blip3oFlowScheduler as Blip3oFlowScheduler
    from .training.arguments import Blip3oTrainingArguments as Blip3oTrainingArguments
    from .training.finetune import finetune as finetune
    from .training.trainer import Blip3oTrainer as Blip3oTrainer

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
    "FlowNFTConfig": "preference.flow_nft",
    "FlowNFTTrainer": "preference.flow_nft",
    "FlowGRPOConfig": "preference.flow_grpo",
    "FlowGRPOTrainer": "preference.flow_grpo",
    "FlowDPOConfig": "preference.flow_dpo",
    "FlowDPOTrainer": "preference.flow_dpo",
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
