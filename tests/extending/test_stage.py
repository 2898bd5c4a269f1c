"""A stage, its data and its benchmark that this file alone defines: a recipe names each as `module:Class`."""

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import Dataset

from blip3o_hf.checks import find_class
from blip3o_hf.data.records import Record, targets
from blip3o_hf.evaluation.benchmark import Benchmark
from blip3o_hf.training.recipes import Recipe
from blip3o_hf.training.runs import run_recipe
from blip3o_hf.training.stages import Stage
from blip3o_hf.training.tasks import Task
from blip3o_hf.training.training_data import TrainingData


class Greys(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return Record(f"grey:{index}", Image.new("RGB", (8, 8), (30 * index,) * 3), f"grey {index}")


class GreysData(TrainingData):
    """Grey pictures."""

    language = ("en",)
    prompt = "grey 3"

    @classmethod
    def check(cls, settings, use, where):
        assert use == "images" and not settings

    def pictures(self, complete=None, processor=None):
        return Greys()


class BrightnessTask(Task):
    """The mean of an image."""

    name = "brightness"
    reads_prompts = False

    def collate(self, records):
        means = [sum(image.convert("L").tobytes()) / 64 / 255 for image in targets(records)]
        return {"means": torch.tensor(means)[:, None]}

    def loss(self, model, batch, generators):
        return (model(torch.ones_like(batch["means"])) - batch["means"]).square().mean()

    def save(self, model, folder, weights=None):
        save_file(model.state_dict() if weights is None else weights, folder / "model.safetensors")
        (folder / "config.json").write_text('{"_class_name": "Brightness"}')


class BrightnessStage(Stage):
    """One number, from nothing."""

    name = "brightness"
    model_keys = ("start",)
    scores = ("drawing",)

    def build(self):
        model = nn.Linear(1, 1, bias=False)
        nn.init.constant_(model.weight, self.recipe.model.get("start", 0.0))
        return model, None

    def task(self):
        return BrightnessTask()

    def score(self, trainer):
        return self.benchmark.drawing(trainer.unwrapped_model)


class DistanceBenchmark(Benchmark):
    """How far the number is from that of the data."""

    keys = {"drawing": ("goal",)}

    def drawing(self, pipe):
        return {"distance": abs(float(pipe(torch.ones(1, 1))) - self.settings.get("goal", 0.4118))}


@pytest.fixture
def recipe(tmp_path):
    return Recipe(
        stage=f"{__name__}:BrightnessStage",
        output_dir=str(tmp_path),
        model={"start": 1.0},
        data={"dataset": f"{__name__}:GreysData"},
        training={
            "max_steps": 60,
            "learning_rate": 0.05,
            "per_device_train_batch_size": 8,
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
        },
        evaluation={"benchmark": f"{__name__}:DistanceBenchmark"},
        source="r.yaml",
    )


def test_it_is_found_under_its_name(recipe):
    assert find_class(recipe.stage, {}, "a test") is type(recipe.open_stage())


def test_it_trains_is_scored_and_leaves_its_result(recipe, tmp_path):
    summary = run_recipe(recipe)
    assert summary.steps == 60 and summary.scores["distance"] < 0.05
    assert load_file(tmp_path / "model.safetensors")["weight"].item() == pytest.approx(0.4118, abs=0.05)
    card = (tmp_path / "README.md").read_text()
    assert f"Records of `{__name__}:GreysData`." in card and "start: 1.0" in card


def test_its_keys_are_checked(recipe):
    recipe.model["strat"] = 1
    with pytest.raises(ValueError, match=r"Unknown key 'strat' in section 'model' of r.yaml. Did you mean 'start'\?"):
        recipe.open_stage()
    recipe.model = {}
    recipe.evaluation["gaol"] = 1
    with pytest.raises(ValueError, match=r"Unknown key 'gaol' in section 'evaluation' of r.yaml. Did you mean 'goal'"):
        recipe.open_stage()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:Stage", "Python finds no module 'nowhere'. Start the command with PYTHONPATH=FOLDER"),
        (f"{__name__}:Nothing", "has no class 'Nothing'. Correct the name."),
    ],
)
def test_a_class_that_is_not_there_is_named(recipe, name, message):
    recipe.stage = name
    with pytest.raises(ValueError, match=message):
        recipe.open_stage()
