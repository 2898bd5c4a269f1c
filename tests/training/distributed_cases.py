"""The cases of `test_distributed.py`, and the recipe of each."""

from dataclasses import dataclass
from pathlib import Path

from blip3o_hf.training.recipes import Recipe

DEEPSPEED = Path(__file__).parents[2] / "recipes" / "deepspeed"
GLOBAL_BATCH = 4
STEPS = 6


@dataclass(frozen=True)
class Case:
    """
    Args:
        num_processes: over which a batch of four is spread.
        deepspeed: name of a file in recipes/deepspeed.
        accumulation: micro-batches of a step.
        stop_after: step after which the run is interrupted and resumed.
    """

    num_processes: int
    deepspeed: str | None = None
    accumulation: int = 1
    stop_after: int | None = None


CASES = {
    "single": Case(1),
    "accumulated": Case(1, accumulation=2),
    "ddp": Case(2),
    "ddp_accumulated": Case(2, accumulation=2),
    "ddp_resumed": Case(2, stop_after=4),
    "zero1": Case(2, "zero1"),
    "zero2": Case(2, "zero2"),
    "zero2_resumed": Case(2, "zero2", stop_after=4),
}


def make_recipe(inputs: Path, folder: Path, case: Case) -> Recipe:
    """Two passes over 12 records, so that the interruption at step 4 lies in the second."""
    training = {
        "max_steps": STEPS,
        "save_steps": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": GLOBAL_BATCH // case.num_processes // case.accumulation,
        "gradient_accumulation_steps": case.accumulation,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "cosine",
        "noise_draws": 2,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "remove_unused_columns": False,
    }
    if case.deepspeed:
        training["deepspeed"] = str(DEEPSPEED / f"{case.deepspeed}.json")
    return Recipe(
        stage="generation",
        output_dir=str(folder),
        inputs={name: str(inputs / name) for name in ("backbone", "encoder", "decoder")},
        model={
            "num_queries": 4,
            "transformer": {
                "dim": 16,
                "num_layers": 1,
                "num_attention_heads": 2,
                "multiple_of": 16,
                "gate_init": 0.5,
            },
        },
        data={"length": 12, "seed": 1},
        training=training,
    )
