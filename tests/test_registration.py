"""A bare `import blip3o_hf` opens the doors of transformers and diffusers, in any order of imports, at no cost."""

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
from diffusers.pipelines import pipeline_loading_utils
from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING
from transformers import AutoConfig, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

import blip3o_hf
from blip3o_hf import registration

SOURCE = Path(__file__).parents[1] / "src"
TINY = blip3o_hf.packaged_model_path()
# What a user writes beside `import blip3o_hf`, and what has to come of it.
DOORS = {
    "pipeline": (
        "from transformers import pipeline",
        "pipeline('text-to-image', model=TINY)",
        "Blip3oTextToImagePipeline",
    ),
    "DiffusionPipeline": (
        "from diffusers import DiffusionPipeline",
        "DiffusionPipeline.from_pretrained(TINY)",
        "Blip3oPipeline",
    ),
    "AutoConfig": ("from transformers import AutoConfig", "AutoConfig.from_pretrained(TINY)", "Blip3oConfig"),
    "AutoModelForImageTextToText": (
        "from transformers import AutoModelForImageTextToText",
        "AutoModelForImageTextToText.from_pretrained(TINY)",
        "Blip3oForConditionalGeneration",
    ),
    "AutoModelForMultimodalLM": (
        "from transformers import AutoModelForMultimodalLM",
        "AutoModelForMultimodalLM.from_pretrained(TINY)",
        "Blip3oForConditionalGeneration",
    ),
    "AutoProcessor": (
        "from transformers import AutoProcessor",
        "AutoProcessor.from_pretrained(TINY)",
        "Blip3oProcessor",
    ),
    "AutoPipelineForText2Image": (
        "from diffusers import AutoPipelineForText2Image",
        "AutoPipelineForText2Image.from_pretrained(TINY)",
        "Blip3oPipeline",
    ),
    "Trainer": ("from transformers import Trainer", "Trainer.__new__(Trainer)", "Trainer"),
}
FAST = ("pipeline", "DiffusionPipeline")


def python(code):
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize(
    "door", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in DOORS]
)
def test_a_door_opens_whichever_import_comes_first(door, ours_first):
    theirs, call, name = DOORS[door]
    imports = ["import blip3o_hf", theirs] if ours_first else [theirs, "import blip3o_hf"]
    assert python("; ".join([*imports, f"TINY = {TINY!r}", f"print(type({call}).__name__)"])).strip() == name


def test_a_bare_import_loads_no_library():
    libraries = ("torch", "transformers", "diffusers")
    code = f"import sys, blip3o_hf; print([name for name in {libraries} if name in sys.modules])"
    assert python(code).strip() == "[]"


def test_what_is_registered():
    assert AutoConfig.for_model("blip3o").model_type == "blip3o"
    config_class = blip3o_hf.Blip3oConfig
    for auto_class in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
        assert auto_class._model_mapping[config_class] is blip3o_hf.Blip3oForConditionalGeneration
    assert AutoProcessor.from_pretrained(TINY).__class__ is blip3o_hf.Blip3oProcessor
    task, description, _ = PIPELINE_REGISTRY.check_task("text-to-image")
    assert (task, description["impl"]) == ("text-to-image", blip3o_hf.Blip3oTextToImagePipeline)
    assert diffusers.Blip3oPipeline is blip3o_hf.Blip3oPipeline
    assert AUTO_TEXT2IMAGE_PIPELINES_MAPPING["blip3o"] is blip3o_hf.Blip3oPipeline


def test_the_registries_of_diffusers_are_still_what_they_were():
    """They are not documented: a release may change them, and this tells what broke."""
    assert pipeline_loading_utils.LOADABLE_CLASSES["diffusers"]["ModelMixin"] == ["save_pretrained", "from_pretrained"]
    assert set(pipeline_loading_utils.LOADABLE_CLASSES["blip3o_hf"]) >= {"ModelMixin", "PreTrainedModel"}
    assert all(issubclass(each, diffusers.DiffusionPipeline) for each in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values())


def test_registering_again_changes_nothing(caplog):
    before = list(PIPELINE_REGISTRY.get_supported_tasks()), dict(AUTO_TEXT2IMAGE_PIPELINES_MAPPING)
    with caplog.at_level(logging.WARNING):
        registration.register()
        registration.register()
        for register in registration.DOORS.values():
            register()
    assert (list(PIPELINE_REGISTRY.get_supported_tasks()), dict(AUTO_TEXT2IMAGE_PIPELINES_MAPPING)) == before
    assert not caplog.records
    assert sum(type(finder).__name__ == "_Doorkeeper" for finder in sys.meta_path) <= 1


def test_the_task_of_another_package_stays(monkeypatch):
    theirs = {"impl": object, "pt": ()}
    monkeypatch.setitem(PIPELINE_REGISTRY.supported_tasks, "text-to-image", theirs)
    registration.register_task()
    assert PIPELINE_REGISTRY.check_task("text-to-image")[1] is theirs


def test_modules_of_others_are_found_as_before():
    assert importlib.util.find_spec("transformers.no_such_module") is None
    assert importlib.util.find_spec("transformers.models.bert").origin.endswith("__init__.py")
