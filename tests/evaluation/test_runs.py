"""A run of a benchmark gives the same pictures however often it was killed, and a score of all of them or none."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from tests.processes import run_script

from blip3o_hf.evaluation.benchmarks.base import Item, PictureBenchmark, json_lines
from blip3o_hf.evaluation.manifests import Manifest
from blip3o_hf.evaluation.runs import DrawingRun, DrawingSettings
from blip3o_hf.hub.results import Figure, Score

WORDS = ("evaluate", "tests.evaluation.test_runs:Brightness")


class Brightness(PictureBenchmark):
    """How bright pictures are; laid out flat, as `<id>_<number>.png`."""

    name, title, about, pictures_per_prompt = "brightness", "Brightness", "The mean of all pixels.", 2

    def read_items(self, path: Path) -> list[Item]:
        return [Item(str(row["id"]), row["prompt"], row) for row in json_lines(path)]

    def write_layout(self, pictures, folder):
        for item in pictures.items:
            for number in range(pictures.number):
                shutil.copy(pictures.path(item, number), folder / f"{item.id}_{number}.png")

    def problems(self, folder):
        return [f"{path.name} is blank" for path in sorted(folder.iterdir()) if not Image.open(path).getbbox()]

    def score(self, pictures):
        means = [np.asarray(pictures.open(item, n)).mean() / 255 for item in pictures.items for n in range(2)]
        return [Score("text-to-image", "brightness", Figure(float(np.mean(means))), len(means), metric="mean")]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    rows = [{"id": f"p{number}", "prompt": f"a red circle {'x' * number}"} for number in range(5)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def pipe(make_pipeline):
    return make_pipeline()


def started(prompts, pipe, folder, **settings):
    call = {"num_inference_steps": 1}
    settings = DrawingSettings(**{"batch_size": 3, "call": call, **settings})
    return DrawingRun(Brightness(prompts), pipe, folder, settings, {"model": "0" * 64})


def pictures_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("pictures/*/*"))}


def test_a_run_leaves_pictures_the_official_folder_and_a_manifest(prompts, pipe, tmp_path):
    manifest = started(prompts, pipe, tmp_path / "run", seed=3).run(WORDS)
    assert len(pictures_of(tmp_path / "run")) == 10
    assert len(list((tmp_path / "run" / "layout").iterdir())) == 10
    assert Manifest.read(tmp_path / "run" / "manifest.json") == manifest
    assert [picture.seed for picture in manifest.pictures] == list(range(3, 13))
    assert manifest.evaluation.settings["prompts"] == 5 and manifest.evaluation.settings["steps"] == 1
    assert manifest.evaluation.command == "blip3o-hf evaluate tests.evaluation.test_runs:Brightness"
    assert set(manifest.inputs) == {"model", "prompts", "prompt file"}
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"run.json", "prompts.jsonl", "pictures", "layout", "manifest.json", ".lock"}
    prompts = [json.loads(line) for line in (tmp_path / "run" / "prompts.jsonl").read_text().splitlines()]
    assert prompts[1] == {"id": "p1", "prompt": "a red circle x"}


def test_each_picture_is_that_of_its_prompt_and_seed(prompts, pipe, tmp_path):
    import torch

    run = started(prompts, pipe, tmp_path, seed=3)
    run.run()
    for position, item in enumerate(run.benchmark.items):
        for number in range(2):
            generator = torch.Generator().manual_seed(3 + 2 * position + number)
            alone = pipe(item.prompt, generator=generator, num_inference_steps=1).images[0]
            drawn = np.asarray(run.pictures.open(item, number)).astype(int)
            assert np.abs(np.asarray(alone).astype(int) - drawn).max() <= 1


def test_seeds_may_begin_again_with_each_prompt(prompts, pipe, tmp_path):
    manifest = started(prompts, pipe, tmp_path, seed=42, seed_rule="prompt").run()
    assert [picture.seed for picture in manifest.pictures] == [42, 43] * 5


def test_a_killed_run_goes_on_and_gives_the_same(prompts, pipe, tmp_path, monkeypatch):
    whole = started(prompts, pipe, tmp_path / "whole").run(WORDS)
    drawn = []

    def draw_two(self, batch, draw=DrawingRun._draw_batch):
        if len(drawn) == 2:
            path = self.pictures.path(*batch[0][1:])
            path.parent.mkdir(parents=True, exist_ok=True)
            (path.parent / ".partial-x.png").touch()  # as a killed process leaves it
            raise KeyboardInterrupt
        drawn.append(batch)
        draw(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(DrawingRun, "_draw_batch", draw_two)
        with pytest.raises(KeyboardInterrupt):
            started(prompts, pipe, tmp_path / "run").run(WORDS)
    (tmp_path / "run" / "pictures" / "p0" / "1.png").unlink()  # of a batch that was half written
    assert not (tmp_path / "run" / "manifest.json").exists()
    again = started(prompts, pipe, tmp_path / "run").run(WORDS)
    assert again.pictures == whole.pictures and again.evaluation.scores == whole.evaluation.scores
    assert pictures_of(tmp_path / "run") == pictures_of(tmp_path / "whole")


def test_two_processes_equal_one(prompts, pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    started(prompts, pipe, tmp_path / "one").run()
    run_script("evaluation/run_ranks.py", tmp_path / "model", prompts, tmp_path / "two", timeout=120)
    assert pictures_of(tmp_path / "two") == pictures_of(tmp_path / "one")
    one, two = (Manifest.read(tmp_path / name / "manifest.json") for name in ("one", "two"))
    assert one.pictures == two.pictures and one.evaluation.scores == two.evaluation.scores


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, r"`seed` in .*run\.json is 0, and now 1\. Name another folder\."),
        ({"batch_size": 2}, r"`batch_size` in .* is 3, and now 2\."),
        ({"call": {"num_inference_steps": 2}}, r"`num_inference_steps` in .* is 1, and now 2\."),
        ({"call": {}}, r"`num_inference_steps` in .* is 1, and now None\."),
        ({"call": {"num_inference_steps": 1, "plan": False}}, r"`plan` in .* is None, and now False\."),
    ],
)
def test_a_run_goes_on_with_its_own_settings_alone(prompts, pipe, tmp_path, change, message):
    started(prompts, pipe, tmp_path / "run").run()
    with pytest.raises(ValueError, match=f"A run goes on with the settings it began with. {message}"):
        started(prompts, pipe, tmp_path / "run", **change).run()


def test_a_prompt_file_of_another_version_is_another_run(prompts, pipe, tmp_path):
    started(prompts, pipe, tmp_path / "run").run()
    prompts.write_text(prompts.read_text().replace("red", "blue"))
    with pytest.raises(ValueError, match=r"`sha256 of prompts` in .* is '[0-9a-f]{64}', and now "):
        started(prompts, pipe, tmp_path / "run").run()


@pytest.mark.parametrize("name", ["device", "dtype", "versions"])
def test_a_run_goes_on_with_the_same_machine_and_code(prompts, pipe, tmp_path, name):
    run = started(prompts, pipe, tmp_path / "run")
    run.run()
    path = tmp_path / "run" / "run.json"
    content = json.loads(path.read_text())
    content[name] = "another"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"`{name}` in .* is 'another', and now "):
        started(prompts, pipe, tmp_path / "run").run()


def test_a_run_that_goes_on_began_when_it_began(prompts, pipe, tmp_path, monkeypatch):
    monkeypatch.setattr("blip3o_hf.evaluation.runs.now", lambda: "2026-01-31T12:00:00Z")
    started(prompts, pipe, tmp_path / "run").run()
    monkeypatch.setattr("blip3o_hf.evaluation.runs.now", lambda: "2026-02-01T12:00:00Z")
    manifest = started(prompts, pipe, tmp_path / "run").run()
    assert (manifest.started, manifest.evaluation.date) == ("2026-01-31T12:00:00Z", "2026-02-01T12:00:00Z")


def test_fewer_prompts_than_all_are_in_the_name(prompts, pipe, tmp_path):
    run = started(prompts, pipe, tmp_path / "run")
    run.benchmark = Brightness(prompts, limit=3)
    run = DrawingRun(run.benchmark, pipe, tmp_path / "few", run.settings, {"model": "0" * 64})
    assert run.run().evaluation.benchmark == "Brightness, first 3 of 5 prompts"


def test_what_judges_is_made_once_all_is_drawn_and_never_for_nothing(prompts, pipe, tmp_path):
    seen = []

    def judges():
        seen.append(len(pictures_of(tmp_path / "run")))
        return {"judge": 5}

    class Judged(Brightness):
        def score(self, pictures, judge):
            return [Score("text-to-image", "judged", Figure(judge), 1)]

    settings = DrawingSettings(batch_size=3, call={"num_inference_steps": 1})
    run = DrawingRun(Judged(prompts), pipe, tmp_path / "run", settings, {"model": "0" * 64})
    assert run.run(judges=judges).evaluation.scores[0].figure.value == 5 and seen == [10]


def test_one_process_at_a_time_writes_a_run(prompts, pipe, tmp_path):
    with FileLock(tmp_path / ".lock"), pytest.raises(ValueError, match="One process at a time writes a run"):
        started(prompts, pipe, tmp_path).run()


def test_prompts_that_are_too_long_are_counted_and_cut_only_where_it_is_said(prompts, pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(pipe.processor, "max_prompt_length", 80)
    with prompts.open("a") as file:
        file.write("\n" + json.dumps({"id": "long", "prompt": "a red circle " * 60}))
    message = r"Prompts must fit the model's context, 80 tokens\. 1 of 6 do not, long among them\. Cut them"
    with pytest.raises(ValueError, match=message):
        started(prompts, pipe, tmp_path / "run")
    manifest = started(prompts, pipe, tmp_path / "run", truncate=True).run()
    assert manifest.evaluation.settings["prompts cut"] == 1


def test_a_folder_that_the_scorer_would_find_wrong_is_named_and_not_left(prompts, pipe, tmp_path):
    run = started(prompts, pipe, tmp_path)
    for item in run.benchmark.items:
        for number in range(2):
            run.pictures.path(item, number).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16)).save(run.pictures.path(item, number))
    with pytest.raises(
        ValueError, match=r"as the scorer of Brightness reads it\. 10 things are wrong: p0_0\.png is bl"
    ):
        run.run()
    assert {path.name for path in tmp_path.iterdir()} == {"prompts.jsonl", "run.json", "pictures", ".lock"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            '{"id": "a", "prompt": "x"}\n{"id": "a", "prompt": "y"}',
            r"an id of its own\. .*prompts\.jsonl has 'a' twice",
        ),
        ('{"id": "../a", "prompt": "x"}', r"letters, digits, `_`, `-` and `\.`\. Number 0 of .* has '\.\./a'"),
        ('{"id": "", "prompt": "x"}', "Number 0 of .* has ''"),
        ('{"id": "..", "prompt": "x"}', r"Number 0 of .* has '\.\.'"),
        ('{"id": "a", "prom', r"must hold one JSON a line\. Line 1 is none: "),
        ("[1]", r"must hold one JSON mapping a line\. Line 1 is \[1\]"),
    ],
)
def test_ids_name_folders_and_each_is_there_once(tmp_path, rows, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text(rows)
    with pytest.raises(ValueError, match=message):
        Brightness(path)


def test_prompts_must_be_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"A benchmark needs its prompt file, .* None is at .*none\. Check"):
        Brightness(tmp_path / "none")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed_rule": "x"}, "`seed_rule` must be one of picture, prompt. Got 'x'."),
        ({"batch_size": 0}, "`batch_size` must be an integer of at least 1. Got 0."),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        DrawingSettings(**settings)
