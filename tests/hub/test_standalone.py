"""A repository that carries its code opens where the package is not installed, and draws what the package draws."""

import json
import shutil
import sys
from pathlib import Path

import diffusers.utils.dynamic_modules_utils as diffusers_modules
import numpy as np
import pytest
import torch
import transformers.dynamic_module_utils as transformers_modules
from tests.hub.carded import put_card
from tests.processes import ROOT, run
from tests.published_layout import write_published_checkpoint

from blip3o_hf import Blip3oConfig, Blip3oForConditionalGeneration, Blip3oPipeline, Blip3oProcessor
from blip3o_hf.assets import packaged_model_path
from blip3o_hf.cli import export, main
from blip3o_hf.hub.standalone import CLASSES, ENTRY, PART, add_code, code_files

PUSHED = "tester/standalone"
# Neither the package is there, nor what it needs besides transformers and diffusers.
WITHOUT = (
    "import runpy, sys; "
    "sys.modules |= dict.fromkeys(['blip3o_hf', 'peft', 'accelerate', 'datasets', 'matplotlib']); "
    "sys.argv = sys.argv[1:]; "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)
SCRIPT = Path(__file__).with_name("standalone_runs.py")
TINY = Path(packaged_model_path())
PROMPT, STEPS = "two red circles", 2


def fails(capsys, arguments: list, *texts: str) -> None:
    """The command ends with one line that holds these texts."""
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert all(text in error for text in texts), error
    assert error.count("\n") == 1


def sizes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("standalone") / "blip3o-tiny"
    assert main(["export", str(TINY), str(target), "--remote-code"]) == 0
    return target


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    """A published checkpoint in our layout; it decodes by diffusion."""
    root = tmp_path_factory.mktemp("converted")
    write_published_checkpoint(root / "published", tied=False, diffusion_decoder=True)
    assert main(["convert", str(root / "published"), str(root / "converted")]) == 0
    return root / "converted"


@pytest.fixture(scope="module")
def pushed(repository, writer, tmp_path_factory) -> str:
    """The id of the repository on the Hub."""
    folder = shutil.copytree(repository, tmp_path_factory.mktemp("pushed") / "blip3o-tiny")
    put_card(folder)
    run([sys.executable, "-m", "blip3o_hf.cli", "push", folder, PUSHED], timeout=100, **writer)
    return PUSHED


@pytest.fixture(scope="module")
def runs(hub, repository, pushed, converted, reader, tmp_path_factory) -> Path:
    """The folder in which a process without the package left what it did."""
    out = tmp_path_factory.mktemp("runs")
    other = out / "other"
    shutil.copytree(repository, other)
    for name, old, new in (
        (f"{ENTRY}.py", 'DIGEST = globals().get("DIGEST"), "', 'DIGEST = globals().get("DIGEST"), "other'),
        ("pipeline_blip3o.py", "\nOUTPUT_TYPES =", "\nMARK = 1\nOUTPUT_TYPES ="),
    ):
        text = (other / name).read_text()
        assert text.count(old) == 1
        (other / name).write_text(text.replace(old, new))
    diffusion = out / "diffusion"
    assert main(["export", str(converted), str(diffusion), "--remote-code"]) == 0
    command = [sys.executable, "-c", WITHOUT, SCRIPT, out, repository, pushed, other, diffusion, ROOT / "src"]
    places = {"HF_HOME": str(out / "home"), "HF_MODULES_CACHE": str(out / "code"), "PYTHONPATH": ""}
    before = len(hub.requests)
    run(command, timeout=600, cwd=out, **reader, **places)
    (out / "asked.json").write_text(json.dumps([path for _, path in hub.requests[before:]]))
    return out


@pytest.fixture(scope="module")
def texts(runs) -> dict:
    return json.loads((runs / "texts.json").read_text())


@pytest.fixture(scope="module")
def images(runs) -> dict:
    return dict(np.load(runs / "images.npz"))


def drawn(source) -> np.ndarray:
    pipe = Blip3oPipeline.from_pretrained(source)
    pipe.set_progress_bar_config(disable=True)
    steps = {"num_inference_steps": STEPS}
    if pipe.unet is not None:
        steps["decoder_num_inference_steps"] = STEPS
    return np.asarray(pipe(PROMPT, generator=torch.Generator().manual_seed(0), **steps).images[0])


# Without the package


def test_the_process_has_no_package(texts):
    assert texts["package"].startswith("ModuleNotFoundError")


def test_every_door_draws_what_the_package_draws_from_the_source(images):
    expected = drawn(TINY)
    images = {door: image for door, image in images.items() if not door.startswith("diffusion")}
    assert set(images) == {
        "generate",
        "generate of the Hub",
        "text-to-image",
        "text-to-image of the Hub",
        "no task",
        "DiffusionPipeline",
        "DiffusionPipeline of the Hub",
        "own Blip3oPipeline",
        "own Blip3oPipeline of the Hub",
        "own text-to-image",
        "own text-to-image, trusting",
        "own DiffusionPipeline, trusting",
    }
    for door, image in images.items():
        np.testing.assert_array_equal(image, expected, door)


def test_a_decoder_by_diffusion_needs_no_package_either(images, converted):
    expected = drawn(converted)
    for door in ("text-to-image", "DiffusionPipeline"):
        assert np.abs(images[f"diffusion: {door}"].astype(int) - expected).max() <= 1, door


def test_every_door_gives_one_answer(texts):
    answers = [text for name, text in texts.items() if "answer" in name]
    assert len(answers) == 7 and len(set(answers)) == 1 and answers[0]


def test_the_libraries_refuse_without_trust_and_run_nothing(texts):
    assert len(texts["refusals"]) == 10
    assert texts["loaded by what was refused"] == [] != texts["loaded by what was trusted"]
    for door, error in texts["refusals"].items():
        assert error.startswith("ValueError") and "trust_remote_code=True" in error, door
    assert "trust_remote_code=True" in texts["refusal of DiffusionPipeline"]


def test_a_folder_asks_no_network(runs, hub):
    asked = json.loads((runs / "asked.json").read_text())
    assert asked and [path for path in asked if PUSHED not in path] == hub.unknown == []


def test_classes_are_the_same_whichever_door_they_came_through(texts):
    assert texts["one class"] == [True, True]


def test_adapters_ask_for_peft(texts):
    assert texts["LoRA"] == "ImportError: Adapters need PEFT. It is not installed. Install it: pip install peft."


def test_code_of_two_repositories_is_kept_apart(texts):
    assert texts["code"] == [False, True, False]


def test_a_saved_model_carries_the_code_too(runs):
    saved = {path.name for path in (runs / "model").glob("*.py")}
    assert saved == code_files().keys()


def test_a_saved_pipeline_is_one_of_the_package(runs):
    index = json.loads((runs / "pipeline" / "model_index.json").read_text())
    assert index["_class_name"] == "Blip3oPipeline"
    assert {index[part][0] for part in ("model", "processor", "scheduler", "decoder")} == {"blip3o_hf"}
    assert not list((runs / "pipeline").rglob("*.py"))
    np.testing.assert_array_equal(drawn(runs / "pipeline"), drawn(TINY))


# With the package


def test_the_package_uses_its_own_classes(texts):
    assert set(texts["own classes"]) == {"blip3o_hf"}


def test_what_the_package_saves_names_no_code(repository, tmp_path):
    model = Blip3oForConditionalGeneration.from_pretrained(repository)
    model.save_pretrained(tmp_path)
    Blip3oProcessor.from_pretrained(repository).save_pretrained(tmp_path)
    Blip3oConfig.from_pretrained(repository).save_pretrained(tmp_path / "config")
    for name in ("config.json", "config/config.json", "processor_config.json"):
        assert not {"auto_map", "custom_pipelines"} & json.loads((tmp_path / name).read_text()).keys()


# What is written


def test_weights_are_stored_once_and_as_they_were(repository):
    before, after = sizes(TINY), sizes(repository)
    weights = {name for name in before if name.endswith(".safetensors")}
    assert {name for name in after if name.endswith(".safetensors")} == weights
    assert all((TINY / name).read_bytes() == (repository / name).read_bytes() for name in weights)
    added = after.keys() - before.keys()
    assert added == code_files().keys() | {
        f"{part}/{PART}.py" for part in ("model", "processor", "scheduler", "decoder")
    }
    code = sum(after[name] for name in added)
    assert code < 0.1 * sum(before[name] for name in weights), "the code is small beside the weights"
    assert sum(after.values()) - sum(before.values()) - code < 2_000, "and nothing else is stored again"


@pytest.mark.parametrize("library", [transformers_modules, diffusers_modules], ids=["transformers", "diffusers"])
def test_a_library_copies_every_file_and_goes_in_no_circle(repository, library):
    names = {name.removesuffix(".py") for name in code_files()}
    assert all("blip3o" in name for name in names)  # of all repositories, they come to lie in one folder
    assert set(library.get_relative_imports(repository / f"{ENTRY}.py")) == names - {ENTRY}
    for name in names - {ENTRY}:
        assert library.get_relative_imports(repository / f"{name}.py") == []
    for part in repository.glob(f"*/{PART}.py"):
        assert library.get_relative_imports(part) == []


def test_transformers_asks_for_no_package_that_it_does_not_need_itself(repository):
    needed = set()
    for name in code_files():
        needed.update(transformers_modules.get_imports(repository / name))
    third_party = {name for name in needed if name not in sys.stdlib_module_names}
    libraries = {"torch", "numpy", "PIL", "safetensors", "huggingface_hub", "transformers", "diffusers"}
    assert third_party == {*libraries, "jinja2"}  # which torch needs, too


def test_code_names_its_version_and_licence():
    from blip3o_hf import __version__

    for text in code_files().values():
        assert (
            text.startswith(f"# Part of blip3o_hf {__version__}: ") and "SPDX-License-Identifier: Apache-2.0" in text
        )


def test_every_class_of_a_saved_pipeline_is_offered(repository):
    index = json.loads((repository / "model_index.json").read_text())
    assert index.pop("_class_name") == [ENTRY, "Blip3oPipeline"]
    parts = {name: value for name, value in index.items() if isinstance(value, list)}
    assert parts.keys() == {"model", "processor", "scheduler", "decoder"}
    assert all(library == PART and name in CLASSES for library, name in parts.values())


def test_adding_code_again_changes_nothing(repository, tmp_path):
    shutil.copytree(repository, tmp_path / "again")
    add_code(tmp_path / "again")
    for path in repository.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "again" / path.relative_to(repository)).read_bytes()


def test_weights_are_rounded_where_that_is_asked_for(tmp_path):
    target = tmp_path / "half"
    assert main(["export", str(TINY), str(target), "--remote-code", "--dtype", "float16"]) == 0
    plain = tmp_path / "plain"
    assert main(["export", str(target), str(plain), "--dtype", "float16"]) == 0
    assert (target / f"{ENTRY}.py").is_file() and not list(plain.rglob("*.py"))
    np.testing.assert_array_equal(drawn(target), drawn(plain))


# Bad input


def test_export_refuses_what_is_no_pipeline_of_this_package(repository, tmp_path, capsys):
    source = tmp_path / "source"
    shutil.copytree(TINY, source, ignore=shutil.ignore_patterns("*.safetensors"))
    call = ["export", source, tmp_path / "new", "--remote-code"]
    fails(capsys, ["export", TINY, repository, "--remote-code"], "The target must not exist yet")
    fails(
        capsys,
        ["export", tmp_path, tmp_path / "new", "--remote-code"],
        "must be a saved pipeline",
        "has no model_index",
    )
    whole = (source / "model_index.json").read_text()
    for text, error in (
        (json.dumps(json.loads(whole) | {"_class_name": "OtherPipeline"}), "holds a OtherPipeline"),
        (json.dumps(json.loads(whole) | {"scheduler": ["mine", "Steps"]}), "scheduler is a Steps of mine"),
        ("[]", "is damaged"),
        ("{", "is damaged"),
    ):
        (source / "model_index.json").write_text(text)
        fails(capsys, call, error)
    (source / "model_index.json").write_text(whole)
    shutil.rmtree(source / "decoder")
    fails(capsys, call, "has a folder for every part", f"{source} has no decoder/")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_export_sends_a_published_checkpoint_to_convert(tmp_path, capsys):
    write_published_checkpoint(tmp_path / "published")
    call = ["export", tmp_path / "published", tmp_path / "new", "--remote-code"]
    fails(capsys, call, "must be a saved pipeline", "published checkpoint", "Run `blip3o-hf convert` first")
    assert [path.name for path in tmp_path.iterdir()] == ["published"]


def test_an_export_that_fails_leaves_nothing(tmp_path, capsys, monkeypatch):
    def full(folder):
        raise OSError("No space left on device")

    monkeypatch.setattr(export, "add_code", full)
    fails(capsys, ["export", TINY, tmp_path / "new", "--remote-code"], "No space left on device")
    assert not list(tmp_path.iterdir())
