"""Doors opened in processes that have imported neither the package nor transformers nor diffusers before.

`python registration_runs.py OUT DOOR...` forks one for each order of imports, after the imports of what these
libraries need themselves, and writes what came of each to `OUT/DOOR-ORDER`.
"""

import sys
from pathlib import Path
from types import ModuleType

from tests.processes import fork, wait

LIBRARIES = ("blip3o_hf", "transformers", "diffusers")
# What a user writes beside `import blip3o_hf`, and what has to come of it.
DOORS = {
    "pipeline": (
        "from transformers import pipeline",
        "pipeline('text-to-image', model=TINY)",
        "Blip3oTextToImagePipeline",
    ),
    "DiffusionPipeline": (
        "from diffusers import DiffusionPipeline",
        "DiffusionPipeline.from_pretrained(TINY)",
        "Blip3oPipeline",
    ),
    # TRL looks up the class on `transformers`, of which there are two objects once a Trainer was used.
    "class, then Trainer": (
        "import transformers",
        "(transformers.Trainer, transformers.Blip3oForConditionalGeneration)[1].from_pretrained(TINY)",
        "Blip3oForConditionalGeneration",
    ),
    "class, newest": (
        "import transformers, importlib",
        "(transformers.Trainer, importlib.import_module('transformers').Blip3oForConditionalGeneration)[1]"
        ".from_pretrained(TINY)",
        "Blip3oForConditionalGeneration",
    ),
    "class after Trainer": (
        "import transformers; transformers.Trainer",
        "transformers.Blip3oForConditionalGeneration.from_pretrained(TINY)",
        "Blip3oForConditionalGeneration",
    ),
    "AutoConfig": ("from transformers import AutoConfig", "AutoConfig.from_pretrained(TINY)", "Blip3oConfig"),
    "AutoModelForImageTextToText": (
        "from transformers import AutoModelForImageTextToText",
        "AutoModelForImageTextToText.from_pretrained(TINY)",
        "Blip3oForConditionalGeneration",
    ),
    "AutoModelForMultimodalLM": (
        "from transformers import AutoModelForMultimodalLM",
        "AutoModelForMultimodalLM.from_pretrained(TINY)",
        "Blip3oForConditionalGeneration",
    ),
    "AutoProcessor": (
        "from transformers import AutoProcessor",
        "AutoProcessor.from_pretrained(TINY)",
        "Blip3oProcessor",
    ),
    "AutoPipelineForText2Image": (
        "from diffusers import AutoPipelineForText2Image",
        "AutoPipelineForText2Image.from_pretrained(TINY)",
        "Blip3oPipeline",
    ),
    "Trainer": ("from transformers import Trainer", "Trainer.__new__(Trainer)", "Trainer"),
}
ORDERS = ("ours first", "theirs first")


def open_door(out: Path, door: str, order: str) -> None:
    theirs, call, _ = DOORS[door]
    names = vars(sys.modules.setdefault("program", ModuleType("program")))  # imports belong to a module
    imports = ["import blip3o_hf", theirs]
    exec("\n".join(imports if order == "ours first" else reversed(imports)), names)
    names["TINY"] = names["blip3o_hf"].packaged_model_path()
    (out / f"{door}-{order}").write_text(type(eval(call, names)).__name__)


def main(out: Path, *doors: str) -> None:
    import accelerate  # noqa: F401
    import huggingface_hub.hf_api  # noqa: F401
    import torch._dynamo

    torch.set_num_threads(1)
    assert not [name for name in sys.modules if name.partition(".")[0] in LIBRARIES]
    for door in doors:
        for order in ORDERS:
            assert wait([fork(open_door, out, door, order)]) == [0], (door, order)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
