"""Repositories that are broken or mean harm are refused at every door, and nothing in them is run."""

import json
import shutil

import pytest
from diffusers import DiffusionPipeline
from transformers import AutoModelForImageTextToText, BertConfig, BertModel, pipeline

from blip3o_hf import Blip3oForConditionalGeneration, Blip3oPipeline, packaged_model_path

EVIL = "from pathlib import Path\nPath(__file__).with_name('was_run').touch()\nclass Evil: pass\n"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(packaged_model_path(), tmp_path / "repository")


@pytest.fixture(autouse=True)
def _own_cache_of_modules(tmp_path, monkeypatch):
    """Where the libraries would copy code of a repository to, before they run it."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "transformers_modules"))
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "diffusers_modules"))


@pytest.fixture(autouse=True)
def _nothing_is_run(tmp_path):
    yield
    assert not list(tmp_path.rglob("was_run"))


def change(path, **values):
    content = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@pytest.mark.parametrize("pipeline_class", [Blip3oPipeline, DiffusionPipeline])
@pytest.mark.parametrize("part", [["os", "system"], ["subprocess", "Popen"], ["blip3o_hf.cli", "main"]])
def test_a_part_of_another_library_is_not_called(folder, pipeline_class, part):
    change(folder / "model_index.json", decoder=part)
    with pytest.raises((ValueError, AttributeError)):
        pipeline_class.from_pretrained(folder)


@pytest.mark.parametrize("pipeline_class", [Blip3oPipeline, DiffusionPipeline])
def test_code_beside_a_part_is_not_run(folder, pipeline_class):
    (folder / "decoder" / "evil.py").write_text(EVIL)
    change(folder / "model_index.json", decoder=["evil", "Evil"])
    with pytest.raises(ValueError, match="trust_remote_code"):
        pipeline_class.from_pretrained(folder)


def test_a_pipeline_of_the_repository_is_not_run(folder):
    (folder / "evil.py").write_text(EVIL)
    change(folder / "model_index.json", _class_name=["evil", "Evil"])
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(folder)
    Blip3oPipeline.from_pretrained(folder)


def test_a_part_outside_of_the_repository_is_not_read(folder):
    shutil.copytree(folder / "decoder", folder.parent / "elsewhere")
    change(folder / "model_index.json", **{"decoder": None, "../elsewhere": ["blip3o_hf", "Blip3oPatchDecoder"]})
    assert Blip3oPipeline.from_pretrained(folder).decoder is None


def test_code_of_a_known_model_type_is_ours(folder):
    (folder / "evil.py").write_text(EVIL)
    change(folder / "config.json", auto_map={"AutoModelForImageTextToText": "evil.Evil", "AutoConfig": "evil.Evil"})
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert type(model) is Blip3oForConditionalGeneration


def test_code_of_an_unknown_model_type_is_not_run(folder):
    (folder / "evil.py").write_text(EVIL)
    auto_map = {"AutoModelForImageTextToText": "evil.Evil", "AutoConfig": "evil.Evil"}
    change(folder / "config.json", model_type="evil", auto_map=auto_map)
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForImageTextToText.from_pretrained(folder)


@pytest.mark.parametrize(
    ("pipeline_class", "content"),
    [
        *((Blip3oPipeline, content) for content in ("", "{", "[]", '{"_class_name": 3}')),
        *((DiffusionPipeline, content) for content in ("", "{")),
    ],
)
def test_a_damaged_model_index_is_named(folder, pipeline_class, content):
    (folder / "model_index.json").write_text(content)
    with pytest.raises((OSError, ValueError), match=r"model_index\.json"):
        pipeline_class.from_pretrained(folder)


def test_a_pickle_is_not_read(folder):
    (folder / "model" / "model.safetensors").rename(folder / "model" / "pytorch_model.bin")
    for load in (Blip3oPipeline.from_pretrained, DiffusionPipeline.from_pretrained):
        with pytest.raises((OSError, ValueError), match=r"pickle|safetensors"):
            load(folder)


def test_a_repository_without_weights_is_named(folder):
    (folder / "model" / "model.safetensors").unlink()
    with pytest.raises((OSError, ValueError), match=str(folder)):
        pipeline("text-to-image", model=str(folder))


def test_another_model_is_refused(tmp_path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=8, **sizes)).save_pretrained(tmp_path / "bert")
    with pytest.raises((ValueError, TypeError, OSError)):
        pipeline("text-to-image", model=str(tmp_path / "bert"))


def test_an_unknown_task_lists_ours():
    with pytest.raises(KeyError, match="text-to-image"):
        pipeline("text-to-picture", model=packaged_model_path())
