"""Registers our classes with transformers and diffusers: at once if the library is imported, else as soon as it is.

`import blip3o_hf` imports neither: it looks for the libraries' own modules that hold a registry, and watches for the
rest. So `import blip3o_hf` costs milliseconds, and a program may import the libraries in any order.

The registries that are not part of a documented interface are `LOADABLE_CLASSES`, the attributes of `diffusers` and
`AUTO_TEXT2IMAGE_PIPELINES_MAPPING`; tests/registration tells when a release of diffusers changes them.
"""

import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from types import ModuleType

TASK = "text-to-image"
_LIBRARIES = ("transformers", "diffusers", "blip3o_hf")
_BASES = ("ModelMixin", "SchedulerMixin", "DiffusionPipeline", "PreTrainedModel", "ProcessorMixin")


def register_configs() -> None:
    from transformers import AutoConfig

    from .models.configuration_blip3o import Blip3oConfig
    from .models.configuration_eva_clip import EvaClipVisionConfig
    from .models.configuration_published import PublishedInferenceConfig, PublishedTrainingConfig

    for config_class in (Blip3oConfig, PublishedTrainingConfig, PublishedInferenceConfig, EvaClipVisionConfig):
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)


def register_models() -> None:
    from transformers import AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    from .models.configuration_blip3o import Blip3oConfig
    from .models.configuration_eva_clip import EvaClipVisionConfig
    from .models.modeling_blip3o import Blip3oForConditionalGeneration
    from .models.modeling_eva_clip import EvaClipVisionModel

    for auto_class in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
        auto_class.register(Blip3oConfig, Blip3oForConditionalGeneration, exist_ok=True)
    AutoModel.register(EvaClipVisionConfig, EvaClipVisionModel, exist_ok=True)
    # TRL looks up the class of a saved model, by the name in its config, on `transformers` itself.
    for transformers in _transformers_objects():
        setattr(transformers, Blip3oForConditionalGeneration.__name__, Blip3oForConditionalGeneration)
    # `transformers serve` looks up there whether a class reads images.
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[Blip3oConfig.model_type] = Blip3oForConditionalGeneration.__name__

    def generate_images(*args, **kwargs):
        from .pipelines.text_to_image import generate_images

        return generate_images(*args, **kwargs)

    Blip3oForConditionalGeneration.image_generator = staticmethod(generate_images)


def _transformers_objects() -> list[ModuleType]:
    """
    All that `import transformers` gave to the modules of this program. The library runs its own file a second time as
    it loads (`transformers.processing_utils`); earlier imports then hold another object than later ones.
    """
    held = [getattr(module, "__dict__", {}).get("transformers") for module in list(sys.modules.values())]
    objects = [sys.modules["transformers"], *(value for value in held if isinstance(value, ModuleType))]
    return list({id(value): value for value in objects if value.__name__ == "transformers"}.values())


def register_processors() -> None:
    from transformers import AutoProcessor

    from .models.configuration_blip3o import Blip3oConfig
    from .models.processing_blip3o import Blip3oProcessor

    AutoProcessor.register(Blip3oConfig, Blip3oProcessor, exist_ok=True)


def register_image_processors() -> None:
    from transformers import AutoImageProcessor

    from .models.configuration_eva_clip import EvaClipVisionConfig
    from .models.image_processing_eva_clip import EvaClipImageProcessor

    AutoImageProcessor.register(
        EvaClipVisionConfig, image_processor_classes={"pil": EvaClipImageProcessor}, exist_ok=True
    )


def register_task() -> None:
    """The task `text-to-image`, unless another package has it; then `pipeline_class=` chooses ours."""
    from transformers import AutoModelForImageTextToText
    from transformers.pipelines import PIPELINE_REGISTRY

    from .pipelines.text_to_image import Blip3oTextToImagePipeline

    if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(
            TASK, Blip3oTextToImagePipeline, pt_model=AutoModelForImageTextToText, type="multimodal"
        )


def register_pipelines() -> None:
    """Saved pipelines name this package and its classes; `DiffusionPipeline` finds them on `diffusers` itself."""
    import diffusers
    from diffusers.pipelines import pipeline_loading_utils

    from .pipelines.pipeline_blip3o import Blip3oPipeline
    from .pipelines.pipeline_blip3o_decoder import Blip3oDecoderPipeline

    methods = {base: ["save_pretrained", "from_pretrained"] for base in _BASES}
    pipeline_loading_utils.LOADABLE_CLASSES[__package__] = methods
    Blip3oPipeline.card_writer = staticmethod(_write_pipeline_card)
    Blip3oPipeline.pusher = staticmethod(_push_saved)
    for pipeline_class in (Blip3oPipeline, Blip3oDecoderPipeline):
        setattr(diffusers, pipeline_class.__name__, pipeline_class)


def _write_pipeline_card(folder, place: str) -> None:
    from .hub.cards import Origin, write_card

    write_card(folder, Origin.of_pipeline(place))


def _push_saved(folder, repo_id: str, **arguments) -> str:
    from .hub.push import push_saved

    return push_saved(folder, repo_id, **arguments)


def register_auto_pipeline() -> None:
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

    from .pipelines.pipeline_blip3o import Blip3oPipeline

    AUTO_TEXT2IMAGE_PIPELINES_MAPPING["blip3o"] = Blip3oPipeline


DOORS: dict[str, Callable[[], None]] = {
    "transformers.models.auto.configuration_auto": register_configs,
    "transformers.models.auto.modeling_auto": register_models,
    "transformers.models.auto.processing_auto": register_processors,
    "transformers.models.auto.image_processing_auto": register_image_processors,
    "transformers.pipelines": register_task,
    "diffusers.pipelines.pipeline_utils": register_pipelines,
    "diffusers.pipelines.auto_pipeline": register_auto_pipeline,
}
"""What to do once a module of a library is imported."""


class _Doorkeeper(MetaPathFinder):
    """
    Registers classes after imports. Classes are registered when no import of a library or of this package is running
    any more: a module that is still being imported may have only half of its names.
    """

    def __init__(self):
        self.closed = dict(DOORS)
        self.depth = 0

    def open_doors(self) -> None:
        for name in [name for name in self.closed if name in sys.modules]:
            register = self.closed.pop(name, None)
            if register is not None:
                register()
        if not self.closed and self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] not in _LIBRARIES:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader.exec_module = self._watched(spec.loader.exec_module)
        return spec

    def _watched(self, execute):
        def exec_module(module):
            self.depth += 1
            try:
                execute(module)
            finally:
                self.depth -= 1
            if self.depth == 0:
                self.open_doors()

        return exec_module


def register() -> None:
    """Register with the libraries that are imported, and watch for the others. Calling it again changes nothing."""
    if not any(isinstance(finder, _Doorkeeper) for finder in sys.meta_path):
        doorkeeper = _Doorkeeper()
        sys.meta_path.insert(0, doorkeeper)
        doorkeeper.open_doors()
