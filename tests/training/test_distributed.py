"""Two processes train like one: the same losses, whole checkpoints, resume in a later pass; through real engines."""

import importlib.util
import json

import pytest
import torch
from accelerate.utils import DistributedType
from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME as PEFT_WEIGHT_NAME
from safetensors.torch import load_file
from tests.processes import run_script
from tests.training.distributed_cases import CASES, RESUMED, STEPS
from transformers import AutoModelForImageTextToText

from blip3o_hf.models.adapters import export_lora, read_lora
from blip3o_hf.models.modeling_blip3o import Blip3oForConditionalGeneration
from blip3o_hf.pipelines.pipeline_blip3o import Blip3oPipeline
from blip3o_hf.training.arguments import Blip3oTrainingArguments
from blip3o_hf.training.distributed import check_engine

HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
NAMES = [name for name, case in CASES.items() if HAS_DEEPSPEED or not (case.engine or "").startswith("zero")]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def runs(inputs, out):
    """Every case, run once."""
    environment = {"DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(out / "extensions")}
    run_script("training/distributed_runs.py", inputs, out, *NAMES, timeout=900, **environment)
    return {name: json.loads((out / f"{name}.json").read_text()) for name in NAMES}


ROUNDED = [name for name in NAMES if CASES[name].bf16]
PLAIN = [name for name in NAMES if name not in (*RESUMED, *ROUNDED) and CASES[name].spoiled is None]
DRAWING = [name for name in PLAIN if not CASES[name].lora]
ADAPTERS = [name for name in PLAIN if CASES[name].lora]


def last(name):
    """The last checkpoint of a case, below its folder."""
    return f"checkpoints/checkpoint-{CASES[name].steps}"


def weights(folder):
    names = ("model.safetensors", "model/model.safetensors", PEFT_WEIGHT_NAME)
    (path,) = (folder / name for name in names if (folder / name).exists())
    return load_file(path)


@pytest.mark.parametrize("name", PLAIN)
def test_losses_evaluation_and_weights_are_those_of_one_process(runs, out, name):
    single = "lora_single" if CASES[name].lora else "single"
    torch.testing.assert_close(runs[name]["losses"], runs[single]["losses"], rtol=1e-5, atol=1e-5)
    assert len(runs[name]["losses"]) == CASES[name].steps
    assert runs[name]["evaluation"] == pytest.approx(runs[single]["evaluation"], rel=1e-4)
    for folder in ("", last(name)):
        actual, expected = weights(out / name / folder), weights(out / single / folder)
        assert actual.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(actual[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ROUNDED)
def test_in_bf16_losses_are_close_and_all_weights_of_one_precision(runs, out, name):
    single = "lora_single" if CASES[name].lora else "single"
    assert runs[name]["losses"][:2] == pytest.approx(runs[single]["losses"][:2], rel=0.005)
    assert torch.tensor(runs[name]["losses"]).isfinite().all()
    assert {value.dtype for value in weights(out / name).values()} == {torch.bfloat16}


@pytest.mark.parametrize("name", [name for name in NAMES if name in RESUMED])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(runs, out, name):
    whole, step = CASES[name].resumes
    assert runs[name]["losses"] == runs[whole]["losses"]
    written = sorted(path.name for path in (out / name / "checkpoints").iterdir())
    assert written == [f"checkpoint-{later}" for later in range(step + 2, STEPS + 1, 2)]
    for folder in ("", last(name)):
        actual, expected = weights(out / name / folder), weights(out / whole / folder)
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[key], value) for key, value in expected.items())


@pytest.mark.parametrize("name", DRAWING)
def test_checkpoints_and_result_are_whole_repositories(runs, inputs, out, name):
    average = Blip3oForConditionalGeneration.from_pretrained(out / name)
    raw = Blip3oForConditionalGeneration.from_pretrained(out / name / last(name))
    assert not torch.equal(average.queries.weight, raw.queries.weight)
    backbone = AutoModelForImageTextToText.from_pretrained(inputs / "backbone")
    for key, value in backbone.state_dict().items():
        assert torch.equal(average.backbone.state_dict()[key], value)
    for folder in (last(name), "pipeline"):
        pipe = Blip3oPipeline.from_pretrained(out / name / folder)
        pipe.set_progress_bar_config(disable=True)
        assert pipe("a red circle", num_inference_steps=1).images[0].size == (64, 64)
        assert (out / name / folder / "README.md").is_file() and (out / name / folder / "target_encoder").is_dir()


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_open_in_peft_and_as_one_file(runs, out, name):
    base = Blip3oForConditionalGeneration.from_pretrained(out / "single")
    model = PeftModel.from_pretrained(base, out / name)
    trained, saved = export_lora(model)[0], read_lora(out / name)[0]
    assert {key.partition(".")[0] for key in saved} == {"transformer", "backbone", "queries"}
    assert trained.keys() == saved.keys()
    assert all(torch.equal(trained[key], value) for key, value in saved.items())
    assert all(value.abs().sum() > 0 for key, value in saved.items())


@pytest.mark.parametrize("name", [name for name in NAMES if CASES[name].spoiled is not None])
def test_an_update_that_is_not_finite_is_left_out(runs, out, name):
    assert runs[name]["left_out"] == 1
    assert all(
        value.isfinite().all() for folder in ("", last(name)) for value in weights(out / name / folder).values()
    )


@pytest.mark.parametrize("name", [name for name in NAMES if CASES[name].num_processes > 1])
def test_the_engine_is_the_one_that_was_asked_for(runs, name):
    engine = CASES[name].engine or ""
    kind = "DEEPSPEED" if engine.startswith("zero") else "FSDP" if engine == "fsdp2" else "MULTI_CPU"
    wrapper = {"DEEPSPEED": "DeepSpeedEngine", "FSDP": "FSDP", "MULTI_CPU": "DistributedDataParallel"}[kind]
    assert runs[name]["distributed_type"] == kind
    assert runs[name]["engine"].startswith(wrapper)
    assert runs[name]["num_processes"] == 2


# What cannot be


def arguments(tmp_path, **settings):
    return Blip3oTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings)


def test_an_engine_that_is_dropped_is_an_error(tmp_path):
    message = "Training must run on the engine that was asked for, FSDP. accelerate chose MULTI_CPU: it has no FSDP on"
    with pytest.raises(ValueError, match=message):
        check_engine(arguments(tmp_path, fsdp=True), DistributedType.MULTI_CPU)
    check_engine(arguments(tmp_path), DistributedType.MULTI_CPU)
    check_engine(arguments(tmp_path, fsdp=True), DistributedType.FSDP)


@pytest.mark.parametrize("engine", [DistributedType.DEEPSPEED, DistributedType.FSDP])
def test_muon_wants_whole_matrices(tmp_path, engine):
    message = f"Muon works on whole matrices, and {engine.value} cuts them up. Got `muon_learning_rate` 0.02. Leave it"
    with pytest.raises(ValueError, match=message):
        check_engine(arguments(tmp_path, muon_learning_rate=0.02), engine)
    check_engine(arguments(tmp_path, muon_learning_rate=0.02), DistributedType.MULTI_GPU)


def test_spikes_are_not_seen_under_deepspeed(tmp_path):
    message = "`spike_factor` needs the gradient norm before the update, and DeepSpeed updates by itself. Got 8.0."
    with pytest.raises(ValueError, match=message):
        check_engine(arguments(tmp_path, spike_factor=8.0), DistributedType.DEEPSPEED)
    check_engine(arguments(tmp_path, spike_factor=8.0), DistributedType.FSDP)
