"""What the earlier stages leave, for runs of the generation stage."""

import pytest
from PIL import Image
from tests.training.test_trainer import MODEL, SmallDataset

from blip3o_hf import Blip3oTrainingArguments
from blip3o_hf.shapes import recipe_data
from blip3o_hf.shapes.stages import encoder
from blip3o_hf.training.recipes import Recipe


@pytest.fixture
def brief(tmp_path):
    """`brief(folder, **settings)`: arguments of a training of four steps on a CPU, in a folder of its own."""

    def make(folder, **settings):
        defaults = {
            "max_steps": 4,
            "save_steps": 2,
            "logging_steps": 1,
            "per_device_train_batch_size": 2,
            "noise_draws": 3,
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
        }
        return Blip3oTrainingArguments(str(tmp_path / folder), **{**defaults, **settings})

    return make


@pytest.fixture(scope="session")
def rows():
    """Four pictures of one colour each, with captions."""
    captions = ("two red circles", "a small blue square", "three green triangles", "a yellow circle")
    return [
        {"image": Image.new("RGB", (32, 32), (60 * index, 20, 90)), "caption": caption}
        for index, caption in enumerate(captions)
    ]


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """Folders `backbone`, `encoder` and `decoder`, untrained."""
    root = tmp_path_factory.mktemp("inputs")
    folders = {"encoder": "encoder", "decoder": "decoder", "understanding": "backbone"}
    with pytest.MonkeyPatch.context() as patch:
        for module in (encoder, recipe_data):
            patch.setattr(module, "ShapesDataset", SmallDataset)
        for name, folder in folders.items():
            needed = {} if name == "encoder" else {"encoder": str(root / "encoder")}
            recipe = Recipe(
                stage=name,
                output_dir=str(root / folder),
                inputs=needed,
                model=MODEL[name],
                data={"length": 4},
                training={"use_cpu": True, "report_to": "none"},
            )
            trainer = recipe.trainer()
            trainer.task.save(trainer.model, root / folder)
    return root
