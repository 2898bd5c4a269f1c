"""The cases of `test_distributed.py`, and the recipe of each."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from blip3o_hf.training.recipes import Recipe

RECIPES = Path(__file__).parents[2] / "recipes"
GLOBAL_BATCH = 4
STEPS = 6
STEPS_PER_EPOCH = 3


@dataclass(frozen=True)
class Case:
    """
    Args:
        num_processes: over which a batch of four is spread.
        engine: `"fsdp2"`, or the name of a file in recipes/deepspeed; DDP by default.
        accumulation: micro-batches of a step.
        resumes: the case whose checkpoint this one goes on from, and the checkpoint's step.
        lora: whether it trains adapters on what the case `single` left.
        bf16: whether it trains in bf16.
        spoiled: the step whose loss is not finite.
        steps: how many it takes.
    """

    num_processes: int = 2
    engine: str | None = None
    accumulation: int = 1
    resumes: tuple[str, int] | None = None
    lora: bool = False
    bf16: bool = False
    spoiled: int | None = None
    steps: int = STEPS


ENGINES = {"ddp": None, "zero1": "zero1", "zero2": "zero2", "zero3": "zero3", "fsdp2": "fsdp2"}
CASES = {
    "single": Case(1),
    "ddp_accumulated": Case(accumulation=2),
    **{name: Case(engine=engine) for name, engine in ENGINES.items()},
    "lora_single": Case(1, lora=True, steps=3),
    **{f"lora_{name}": Case(engine=name, lora=True, steps=3) for name in ("zero2", "zero3", "fsdp2")},
    **{f"bf16_{name}": Case(engine=name, bf16=True, steps=3) for name in ("zero2", "zero3")},
    "bf16_lora_zero3": Case(engine="zero3", bf16=True, lora=True, steps=3),
    **{f"spoiled_{name}": Case(engine=name, spoiled=2, steps=3) for name in ("zero2", "zero3", "fsdp2")},
}
RESUMED = {f"{name}_from_{step}": replace(CASES[name], resumes=(name, step)) for name in ENGINES for step in (2, 4)}
CASES |= RESUMED


def make_recipe(inputs: Path, folder: Path, case: Case) -> Recipe:
    """Two passes over 12 records: checkpoint 2 lies in the middle of the first, checkpoint 4 in that of the second."""
    training = {
        "max_steps": case.steps,
        "save_steps": 2 if case.steps == STEPS else STEPS,
        "logging_steps": 1,
        "per_device_train_batch_size": GLOBAL_BATCH // case.num_processes // case.accumulation,
        "gradient_accumulation_steps": case.accumulation,
        "learning_rate": 1e-2,
        "adam_epsilon": 1e-3,  # otherwise Adam blows up the rounding of gradients that are nearly zero
        "lr_scheduler_type": "cosine",
        "noise_draws": 2,
        "ema_decay": 0.9,
        "bf16": case.bf16,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "remove_unused_columns": False,
    }
    if case.engine == "fsdp2":
        training |= {"fsdp": True, "fsdp_config": str(RECIPES / "accelerate" / "fsdp2.json")}
    elif case.engine:
        settings = json.loads((RECIPES / "deepspeed" / f"{case.engine}.json").read_text())
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # partition small weights, too
        training["deepspeed"] = settings
    return Recipe(
        stage="generation",
        output_dir=str(folder),
        inputs={
            "encoder": str(inputs / "encoder"),
            "decoder": str(inputs / "decoder"),
            **({"model": str(folder.parent / "single")} if case.lora else {"backbone": str(inputs / "backbone")}),
        },
        model={"lora": {"parts": ["transformer", "backbone"], "rank": 4}}
        if case.lora
        else {
            "num_queries": 4,
            "condition_dropout": 0.1,
            "transformer": {
                "dim": 16,
                "num_layers": 1,
                "num_attention_heads": 2,
                "multiple_of": 16,
                "gate_init": 0.5,
            },
        },
        data={"length": GLOBAL_BATCH * STEPS_PER_EPOCH, "seed": 1},
        training=training,
        evaluation={"benchmark": None},
    )
