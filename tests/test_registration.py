"""A bare `import blip3o_hf` opens the doors of transformers and diffusers, in any order of imports."""

import importlib.util
import logging
import sys
from functools import cache
from pathlib import Path

import diffusers
import pytest
from diffusers.pipelines import pipeline_loading_utils
from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING
from tests.processes import run_script
from tests.registration_runs import DOORS, ORDERS
from transformers import AutoConfig, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

import blip3o_hf
from blip3o_hf import registration

TINY = blip3o_hf.packaged_model_path()
FAST = ("pipeline", "DiffusionPipeline", "class, then Trainer", "class, newest", "class after Trainer")


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """`opened(door, order)`: what came of a door. Fast ones are opened by one script, the others by another."""

    @cache
    def run(doors: tuple[str, ...]) -> Path:
        out = tmp_path_factory.mktemp("doors")
        run_script("registration_runs.py", out, *doors, timeout=600)
        return out

    def get(door: str, order: str) -> str:
        together = FAST if door in FAST else tuple(name for name in DOORS if name not in FAST)
        return (run(together) / f"{door}-{order}").read_text()

    return get


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "door", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in DOORS]
)
def test_a_door_opens_whichever_import_comes_first(opened, door, order):
    assert opened(door, order) == DOORS[door][2]


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


def test_transformers_serve_knows_that_the_model_reads_images(model):
    manager = pytest.importorskip("transformers.cli.serving.model_manager").ModelManager
    assert manager.get_model_modality(model, AutoProcessor.from_pretrained(TINY)).name == "VLM"


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
