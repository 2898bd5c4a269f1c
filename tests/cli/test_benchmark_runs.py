"""`evaluate BENCHMARK`: options become benchmark and judges, a run is left and printed, and regenerates."""

import json

import pytest

from blip3o_hf.cli import main
from blip3o_hf.evaluation.manifests import Manifest

FAST = ["--steps", "1", "--attempts", "1", "--no-plan", "--batch-size", "4"]


def redness(pictures, rows):
    """A scorer: the mean of red."""
    return [sum(picture.convert("RGB").resize((1, 1)).getpixel((0, 0))[:1]) / 255 for picture in pictures]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    rows = [{"id": f"p{number}", "prompt": prompt} for number, prompt in enumerate(("a red circle", "a blue square"))]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_the_tiny_world_is_a_benchmark_that_regenerates(tmp_path, capsys):
    folder = tmp_path / "run"
    words = ["evaluate", "shapes", "--per-family", "1", "--limit", "4", *FAST]
    assert main([*words, "--output", str(folder)]) == 0
    printed = capsys.readouterr()
    assert "overall" in printed.out and f"4 pictures, and the manifest: {folder}/manifest.json" in printed.out
    manifest = Manifest.read(folder / "manifest.json")
    assert len(manifest.pictures) == 4 and not (folder / "layout").exists()
    assert set(manifest.inputs) == {"model", "prompts", "prompt file"}
    assert main(["regenerate", str(folder), "--output", str(tmp_path / "again")]) == 0
    assert (
        capsys.readouterr().out.splitlines()[-1] == f"equal: 4 pictures and {len(manifest.evaluation.scores)} scores"
    )
    again = tmp_path / "again" / "pictures" / "00000" / "0.png"
    assert again.read_bytes() == (folder / "pictures" / "00000" / "0.png").read_bytes()


def test_own_prompts_and_an_own_scorer_are_a_benchmark(tmp_path, prompts, capsys):
    words = ["evaluate", "own", "--prompts", str(prompts), "--scorer", f"{__name__}:redness", *FAST]
    assert main([*words, "--output", str(tmp_path / "run")]) == 0
    assert f"scorer {__name__}:redness: mean" in capsys.readouterr().out
    manifest = Manifest.read(tmp_path / "run" / "manifest.json")
    assert manifest.words[:4] == ("evaluate", "own", "--prompts", "prompts.jsonl")  # and not where it lies here
    assert main(["regenerate", str(tmp_path / "run"), "--prompts", str(prompts)]) == 2
    assert "Add --own-code if you trust it." in capsys.readouterr().err
    assert main(["regenerate", str(tmp_path / "run"), "--prompts", str(prompts), "--own-code"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "equal: 2 pictures and 1 scores"


def test_without_a_judge_the_official_folder_is_left(tmp_path, capsys):
    rows = [{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}]
    (tmp_path / "meta.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = [
        "evaluate",
        "geneval",
        "--prompts",
        str(tmp_path / "meta.jsonl"),
        *FAST,
        "--output",
        str(tmp_path / "run"),
    ]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert "note: no score" in printed.err and f"for the official scorer: {tmp_path}/run/layout" in printed.out
    assert f"evaluate_images.py {tmp_path}/run/layout" in printed.out
    assert len(list((tmp_path / "run" / "layout" / "00000" / "samples").iterdir())) == 4


def test_verdicts_of_a_judge_are_scored(tmp_path, capsys):
    rows = [{"prompt_id": 1, "Prompt": "a red circle", "Category": "Cultural knowledge"}]
    (tmp_path / "prompts.json").write_text(json.dumps(rows))
    verdicts = tmp_path / "verdicts.json"
    verdicts.write_text(json.dumps({"judge": "me", "verdicts": {"1": 1}}))
    words = ["evaluate", "wise-verified", "--prompts", str(tmp_path / "prompts.json"), "--verdicts", str(verdicts)]
    assert main([*words, *FAST, "--output", str(tmp_path / "run")]) == 0
    assert "WISE (verified), judge me: culture" in capsys.readouterr().out
    assert "verdicts" in Manifest.read(tmp_path / "run" / "manifest.json").inputs


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["shapes"],
            "A run of a benchmark leaves pictures, so it needs a folder. Got no --output. Add --output runs/sh",
        ),
        (["shape", "--output", "{}/x"], "Unknown key 'shape' in the benchmark's name. Did you mean 'shapes'?"),
        (["geneval", "--output", "{}/x"], "GenEval rules reads its prompts from a file. No file was given."),
        (["shapes", "--limit", "0", "--output", "{}/x"], "`limit` must be a whole number of at least 1. Got 0."),
        (["shapes", "--prompts", "p", "--output", "{}/x"], "The tiny world makes its prompts itself."),
        (["shapes", "--batch-size", "0", "--output", "{}/x"], "`batch_size` must be an integer of at least 1. Got 0."),
        (["own", "--prompts", "{}/none", "--output", "{}/x"], "A benchmark needs its prompt file"),
        (["shapes", "--verdicts", "v", "--output", "{}/x"], "--verdicts is not for shapes. Got 'v'. Leave it out."),
        (["shapes", "--judge", "none", "--output", "{}/x"], "--judge is not for shapes."),
        (["shapes", "--wordings", "--output", "{}/x"], "--wordings is for all of the tiny world, without a name."),
        (["--limit", "3"], "--limit is for a benchmark that is named. Got 3. Leave it out."),
    ],
)
def test_bad_options_are_named_and_leave_nothing(tmp_path, capsys, words, message):
    assert main(["evaluate", *(word.format(tmp_path) for word in words)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_a_score_needs_is_looked_for_before_anything_is_drawn(tmp_path, prompts, capsys):
    run = tmp_path / "run"
    words = ["evaluate", "own", "--prompts", str(prompts), "--output", str(run), *FAST]
    assert main([*words, "--scorer", "nomodule:f"]) == 2
    assert "Python finds no module 'nomodule'" in capsys.readouterr().err and not run.exists()
    rows = [{"prompt_id": 1, "Prompt": "a red circle", "Category": "time"}]
    (tmp_path / "wise.json").write_text(json.dumps(rows))
    (tmp_path / "v.json").write_text(json.dumps({"judge": "me", "verdicts": {}}))
    words = ["evaluate", "wise-verified", "--prompts", str(tmp_path / "wise.json"), "--output", str(run), *FAST]
    assert main([*words, "--verdicts", str(tmp_path / "v.json")]) == 2
    assert "needs a verdict on each picture. 1 are missing" in capsys.readouterr().err and not run.exists()
    rows = [{"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}], "prompt": "a red dog"}]
    (tmp_path / "meta.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["evaluate", "geneval", "--prompts", str(tmp_path / "meta.jsonl"), "--output", str(run), *FAST]
    assert main([*words, "--detector", "blip3o-tiny"]) == 2
    assert "need a colour classifier. Got none. Give `colors`" in capsys.readouterr().err and not run.exists()
