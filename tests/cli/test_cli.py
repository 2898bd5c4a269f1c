"""The command line as its users meet it: files appear, answers are printed, bad input is one clear line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import get_peft_model
from PIL import Image
from tests.published_layout import write_published_checkpoint

from blip3o_hf import Blip3oPipeline
from blip3o_hf.assets import packaged_model_path
from blip3o_hf.cli import build_parser, main
from blip3o_hf.cli.generate import lora_of
from blip3o_hf.models.adapters import lora_config, save_lora
from blip3o_hf.models.modeling_blip3o import Blip3oForConditionalGeneration
from blip3o_hf.shapes import Scene, SceneObject, render

TINY = Path(packaged_model_path("blip3o-tiny"))


@pytest.fixture
def scene_file(tmp_path):
    scene = Scene((SceneObject("circle", "red", "large", 1, 1), SceneObject("square", "blue", "large", 4, 4)), "white")
    path = tmp_path / "scene.png"
    Image.fromarray(render(scene)).save(path)
    return path


def fails(capsys, arguments, *texts):
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"blip3o-hf {arguments[0]}: ")
    assert error.count("\n") == 1 and "Traceback" not in error
    for text in texts:
        assert text in error


def test_every_command_has_help_with_examples(capsys):
    parser = build_parser()
    for command in (
        "demo",
        "generate",
        "describe",
        "edit",
        "reconstruct",
        "chat",
        "app",
        "train",
        "precompute",
        "data",
        "evaluate",
        "human-study",
        "card",
        "convert",
        "export",
        "push",
        "env",
    ):
        with pytest.raises(SystemExit) as stop:
            parser.parse_args([command, "--help"])
        assert stop.value.code == 0
        assert f"blip3o-hf {command}" in capsys.readouterr().out.partition("example")[2]


def test_generate_writes_numbered_files_that_depend_on_the_seed_alone(tmp_path, capsys):
    out = tmp_path / "a.png"
    call = ["generate", "two red circles", "-o", str(out), "-n", "2", "--seed", "3", "--steps", "3"]
    assert main(call) == 0
    assert capsys.readouterr().out.split() == [str(out), str(tmp_path / "a-2.png")]
    first, second = (np.asarray(Image.open(tmp_path / name)) for name in ("a.png", "a-2.png"))
    assert first.shape == (64, 64, 3) and (first != second).any()
    assert main(["generate", "two red circles", "-o", str(tmp_path / "b.png"), "--seed", "4", "--steps", "3"]) == 0
    alone = np.asarray(Image.open(tmp_path / "b.png")).astype(int)
    assert np.abs(alone - second).max() <= 1  # a batch rounds differently in the last bit
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-2.png", "a.png", "b.png"]


def test_generate_takes_a_negative_prompt_and_adapters(tmp_path, capsys):
    model = Blip3oForConditionalGeneration.from_pretrained(packaged_model_path())
    model = get_peft_model(model, lora_config(model, rank=2, train_queries=False))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    path = save_lora(model, tmp_path)

    def drawn(*options):
        settings = ["-o", str(tmp_path / "a.png"), "--steps", "2", "--attempts", "1"]
        assert main(["generate", "two red circles", *settings, *options]) == 0
        return np.asarray(Image.open(tmp_path / "a.png")).astype(int)

    plain = drawn()
    assert (drawn("--negative-prompt", "a blue square") != plain).any()
    full = drawn("--lora", str(path))
    assert (full != plain).any() and (drawn("--lora", f"{tmp_path}:1") == full).all()
    assert (drawn("--lora", f"{tmp_path}:0") == plain).all()
    assert np.abs(drawn("--lora", f"{tmp_path}:0.5", "--lora", f"{tmp_path}:0.5") - full).max() <= 1
    capsys.readouterr()
    (tmp_path / "empty").mkdir()
    fails(capsys, ["generate", "a circle", "--lora", tmp_path / "empty"], "A LoRA is read from")
    fails(capsys, ["generate", "a circle", "--guidance", "1", "--negative-prompt", "a"], "switches guidance off")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("my_lora", ("my_lora", 1.0)),
        ("my_lora:0.5", ("my_lora", 0.5)),
        ("me/style:-1", ("me/style", -1.0)),
        ("C:\\loras\\style", ("C:\\loras\\style", 1.0)),
        ("C:\\loras\\style:2", ("C:\\loras\\style", 2.0)),
    ],
)
def test_a_lora_on_the_command_line_may_have_a_scale(text, expected):
    assert lora_of(text) == expected


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["generate", "  "], ["A prompt must say something"]),
        (["generate", "red " * 400], ["A prompt must fit the context", "Shorten it"]),
        (["generate", "a circle", "--steps", "0"], ["`num_inference_steps` must be an integer of at least 1. Got 0"]),
        (["generate", "a circle", "--guidance", "-1"], ["`guidance_scale` must be a finite number", "Got -1.0"]),
        (["generate", "a circle", "--guidance", "nan"], ["`guidance_scale` must be a finite number", "Got nan"]),
        (["generate", "a circle", "-n", "0"], ["-n must be at least 1. Got 0"]),
        (["generate", "a circle", "--model", "blip3o-tinny"], ["No model found at 'blip3o-tinny'", "blip3o-tiny"]),
    ],
)
def test_generate_refuses_bad_input_and_writes_nothing(tmp_path, capsys, arguments, texts):
    fails(capsys, [*arguments, "-o", tmp_path / "out.png"], *texts)
    assert list(tmp_path.iterdir()) == []


def test_outputs_are_checked_before_any_work(tmp_path, capsys):
    fails(capsys, ["generate", "a circle", "-o", tmp_path / "missing" / "a.png"], "The output's folder must exist")
    fails(capsys, ["generate", "a circle", "-o", tmp_path], "The output must be a file")
    fails(capsys, ["generate", "a circle", "-o", tmp_path / "a.txt"], "no ending of a picture format", "out.png")
    fails(capsys, ["demo", "-o", tmp_path / "missing" / "a.png"], "The output's folder must exist")
    fails(capsys, ["evaluate", "--output", tmp_path / "missing" / "a.json"], "The output's folder must exist")


def test_describe_answers_questions_about_a_picture(scene_file, capsys):
    for question, answer in {
        "what color is the background?": "white",
        "what color is the circle?": "red",
        "what shape is the blue object?": "square",
        "how many objects are there?": "two",
        "is there a green triangle?": "no",
    }.items():
        assert main(["describe", str(scene_file), question]) == 0
        assert capsys.readouterr().out.strip() == answer
    assert main(["describe", str(scene_file)]) == 0
    description = capsys.readouterr().out
    assert "red circle" in description and "blue square" in description and "white background" in description


def test_describe_refuses_what_is_no_picture(tmp_path, capsys, scene_file):
    empty, text = tmp_path / "empty.png", tmp_path / "text.png"
    empty.touch()
    text.write_text("no picture")
    fails(capsys, ["describe", tmp_path / "none.png"], "The image must be a file", "none.png")
    fails(capsys, ["describe", empty], "is empty (0 bytes)")
    fails(capsys, ["describe", text], f"The image must be a picture file. Got {text}: not a readable image")
    fails(capsys, ["describe", scene_file, " "], "The question must say something")


@pytest.mark.parametrize("command", [["describe"], ["edit", "make it red"], ["reconstruct"]])
def test_commands_open_images_as_data_is_opened(tmp_path, capsys, command):
    """PostScript would start another program, and a small file can hold very many pixels."""
    script, large = tmp_path / "script.png", tmp_path / "large.png"
    script.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    Image.new("1", (12_000, 12_000)).save(large)
    refused = "The image must be a picture file"
    fails(capsys, [*command, script], refused, "script.png: not a readable image")
    fails(
        capsys, [*command, large], refused, "large.png: image of 12000 x 12000 pixels, more than max_pixels 64000000"
    )


def test_describe_names_a_truncated_picture(tmp_path, capsys, scene_file):
    cut = tmp_path / "cut.png"
    cut.write_bytes(scene_file.read_bytes()[:90])
    fails(capsys, ["describe", cut], "The image must be a picture file", "cut.png")


def test_the_demo_does_not_judge_pictures_of_another_world(tmp_path, capsys, make_pipeline):
    make_pipeline().save_pretrained(tmp_path / "other")
    assert main(["demo", "-o", str(tmp_path / "grid.png"), "--model", str(tmp_path / "other")]) == 0
    printed = capsys.readouterr().out
    assert printed.count("drawn: ") == 12 and "pictures show exactly" not in printed


def test_demo_writes_a_grid_and_prints_its_path(tmp_path, capsys):
    out = tmp_path / "grid.png"
    assert main(["demo", "-o", str(out)]) == 0
    assert capsys.readouterr().out.strip().endswith(str(out))
    assert min(Image.open(out).size) > 500


def test_evaluate_prints_a_table_and_writes_results(tmp_path, capsys):
    out = tmp_path / "results.json"
    call = ["evaluate", "--per-family", "2", "--per-kind", "2", "--pictures", "2", "--per-edit", "2"]
    call += ["--steps", "2", "--output", str(out)]
    assert main(call) == 0
    printed = capsys.readouterr().out
    for word in (
        "score",
        "chance",
        "ceiling",
        "overall",
        "counting",
        "unseen_relation",
        "position",
        "captions",
        "followed",
    ):
        assert word in printed
    written = json.loads(out.read_text())
    assert {"benchmark", "command", "date", "settings", "versions", "scores"} <= written.keys()
    for row in written["scores"]:
        assert row["name"] in printed and (row["total"] == 2 or row["name"].endswith("overall"))
        for figure in (row["figure"], *row["beside"].values()):
            low, high = figure["interval"]
            assert 0 <= low <= figure["value"] + 1e-9 and figure["value"] - 1e-9 <= high <= 1
    fails(capsys, ["evaluate", "--per-family", "0"], "--per-family must be at least 1. Got 0")
    fails(capsys, ["evaluate", "--per-edit", "-1"], "--per-edit must be at least 0. Got -1")


def test_train_runs_a_recipe_and_leaves_a_loadable_part(tmp_path, capsys):
    recipe = tmp_path / "decoder.yaml"
    recipe.write_text(
        "stage: decoder\n"
        f"output_dir: {tmp_path / 'decoder'}\n"
        f"inputs: {{encoder: {TINY / 'target_encoder'}}}\n"
        "model: {dim: 32, num_layers: 1, num_attention_heads: 2}\n"
        "data: {length: 64}\n"
        "evaluation: {per_family: 1}\n"
        "training: {max_steps: 2, per_device_train_batch_size: 4, use_cpu: true, report_to: none, save_steps: 1,\n"
        "  remove_unused_columns: false, logging_steps: 1}\n"
    )
    assert main(["train", str(recipe), "training.learning_rate=1.0e-3"]) == 0
    assert "decoder: 2 steps" in capsys.readouterr().out
    assert (tmp_path / "decoder" / "diffusion_pytorch_model.safetensors").is_file()
    assert Image.open(tmp_path / "decoder" / "curves.png").size[0] > 100
    (tmp_path / "decoder" / "checkpoints" / "checkpoint-2" / "COMPLETE").unlink()
    assert main(["train", str(recipe), "--resume", "training.max_steps=3"]) == 0
    assert "decoder: 3 steps" in capsys.readouterr().out


def test_train_refuses_unknown_keys_and_missing_files(tmp_path, capsys):
    fails(capsys, ["train", tmp_path / "none.yaml"], "There is none at", "none.yaml")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"stage: decodr\noutput_dir: {tmp_path / 'x'}\n")
    fails(capsys, ["train", recipe], "Unknown key 'decodr'", "Did you mean 'decoder'?", "r.yaml")
    recipe.write_text(f"stage: decoder\noutput_dir: {tmp_path / 'x'}\ntraining: {{max_step: 2}}\n")
    fails(capsys, ["train", recipe], "Unknown key 'max_step'", "Did you mean 'max_steps'?")
    recipe.write_text(f"stage: decoder\noutput_dir: {tmp_path / 'x'}\ninputs: {{encoder: {tmp_path / 'y'}}}\n")
    fails(capsys, ["train", recipe], "There is no such folder", "Run the stage that writes it first")
    assert not (tmp_path / "x").exists()


def test_precompute_then_train_from_the_cache_leaves_a_whole_pipeline(tmp_path, capsys):
    recipe = tmp_path / "dit.yaml"
    recipe.write_text(
        "stage: generation\n"
        f"output_dir: {tmp_path / 'dit'}\n"
        f"inputs: {{model: {TINY}}}\n"
        "model: {train: [transformer]}\n"
        f"data: {{length: 6, cache: {tmp_path / 'cache'}}}\n"
        "evaluation: {prompts: [a red circle], num_inference_steps: 1}\n"
        "training: {max_steps: 1, per_device_train_batch_size: 4, use_cpu: true, report_to: none,\n"
        "  remove_unused_columns: false}\n"
    )
    fails(capsys, ["train", recipe], "A cache is a folder that `blip3o-hf precompute` wrote", "Run the command")
    assert main(["precompute", str(recipe), "--dtype", "bfloat16"]) == 0
    targets, conditions, bad, folder = capsys.readouterr().out.splitlines()[-4:]
    assert targets == "targets: 70 records, 70 rows computed now"
    assert conditions.startswith("conditions: 70 records, ")
    assert (bad, folder) == ("bad items: 0", str(tmp_path / "cache"))
    assert main(["train", str(recipe)]) == 0
    assert (tmp_path / "dit" / "pipeline" / "target_encoder" / "model.safetensors").is_file()
    assert Image.open(tmp_path / "dit" / "samples-1.png").size[0] > 100
    call = ["generate", "a", "-o", str(tmp_path / "a.png"), "--steps", "1"]
    assert main([*call, "--model", str(tmp_path / "dit" / "pipeline")]) == 0


def test_precompute_refuses_what_it_cannot_do(tmp_path, capsys):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"stage: generation\noutput_dir: x\ninputs: {{model: {TINY}}}\ndata: {{length: 4}}\n")
    fails(capsys, ["precompute", recipe], "A cache needs a folder. None was given")
    call = ["precompute", recipe, "--output", tmp_path / "cache"]
    fails(capsys, [*call, "--what", "conditions"], "where the queries are frozen", "trains queries, transformer")
    fails(capsys, [*call, "--shard-size", "0"], "`shard_size` must be at least 1. Got 0")
    fails(capsys, [*call, "data.lenght=3"], "Unknown key 'lenght'", "Did you mean 'length'?")
    assert not (tmp_path / "cache").exists()


def test_export_does_not_tell_where_the_pipeline_was(tmp_path, make_pipeline):
    make_pipeline().save_pretrained(tmp_path / "source")
    Blip3oPipeline.from_pretrained(tmp_path / "source").save_pretrained(tmp_path / "again")
    assert main(["export", str(tmp_path / "again"), str(tmp_path / "out")]) == 0
    for path in (tmp_path / "out").rglob("*.json"):
        assert str(tmp_path) not in path.read_text(), path


def test_export_refuses_to_overwrite_and_keeps_the_pictures(tmp_path, capsys):
    target = tmp_path / "copy"
    assert main(["export", str(TINY), str(target), "--dtype", "bfloat16"]) == 0
    assert Path(capsys.readouterr().out.strip()) == target
    fails(capsys, ["export", TINY, target], "must not exist yet")
    fails(capsys, ["export", tmp_path, tmp_path / "new"], "has no model_index.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]
    for model in (str(TINY), str(target)):
        assert main(["generate", "a red square", "-o", str(tmp_path / "a.png"), "--steps", "2", "--model", model]) == 0
        (tmp_path / "a.png").rename(tmp_path / f"{len(model)}.png")
    first, second = (Image.open(path) for path in tmp_path.glob("*.png"))
    np.testing.assert_array_equal(np.asarray(first), np.asarray(second))


def test_convert_prints_where_every_tensor_went(tmp_path, capsys):
    source, target = tmp_path / "source", tmp_path / "target"
    write_published_checkpoint(source, diffusion_decoder=True)
    assert main(["convert", str(source), str(target), "--max-shard-size", "0.5MB"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"tensors of {source}") and lines[-1] == str(target)
    assert any(line.startswith("model.latent_queries ") and line.endswith(" model/ queries.weight") for line in lines)
    call = ["generate", "a", "-o", str(tmp_path / "a.png"), "--steps", "1", "--model", str(target)]
    assert main(call) == 0 and (tmp_path / "a.png").is_file()
    capsys.readouterr()  # progress bars
    fails(capsys, ["convert", source, target], "The target must not exist yet")
    fails(capsys, ["convert", target, tmp_path / "new"], "Our own layout needs no conversion")
    for size in ("5", "0GB", "5TB", "GB"):
        fails(capsys, ["convert", source, tmp_path / "new", "--max-shard-size", size], f"Got {size!r}. Example: 5GB.")
    assert not (tmp_path / "new").exists()


def test_env_names_the_versions_a_bug_report_needs(capsys):
    assert main(["env"]) == 0
    printed = capsys.readouterr().out
    for word in ("python: 3", "torch: ", "transformers: ", "diffusers: ", "accelerator: "):
        assert word in printed
