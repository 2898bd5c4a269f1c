"""What the earlier stages leave, for runs of the generation stage."""

import pytest
from tests.training.test_trainer import MODEL, SmallDataset

from blip3o_hf.shapes import recipe_data
from blip3o_hf.shapes.stages import encoder
from blip3o_hf.training.recipes import Recipe


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
