"""Learning from rewards on a tiny BLIP3-o: its three trainers and what they must beat, over seeds. See README.md.

python benchmarks/preference.py start            # a model that leaves room, trained for a few minutes
python benchmarks/preference.py train            # every method and seed; give it again to go on
python benchmarks/preference.py report           # score all of them, the table, the curve and the sheet
"""
# ruff: noqa: T201 - a script that reports on standard output

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from tqdm import tqdm

from blip3o_hf import Blip3oForConditionalGeneration, Blip3oPipeline, packaged_model_path
from blip3o_hf.evaluation.manifests import Manifest, environment_of, file_hash, model_hash
from blip3o_hf.evaluation.sheets import bands, contact_sheet
from blip3o_hf.evaluation.statistics import Change, paired_change
from blip3o_hf.files import written_whole
from blip3o_hf.hub.provenance import now, versions
from blip3o_hf.hub.results import Evaluation, Figure, Score
from blip3o_hf.preference.reward_task import diversity
from blip3o_hf.preference.rollouts import Rollouts
from blip3o_hf.shapes import EVALUATION_FAMILIES, Prompt, benchmark, verify
from blip3o_hf.shapes.benchmark import Drawing
from blip3o_hf.training.recipes import load_recipe
from blip3o_hf.training.runs import HISTORY, run_recipe
from blip3o_hf.training.trainer import seeded_generator

ROOT = Path(__file__).resolve().parent.parent
STEPS = 10
SAMPLERS = {"without guidance": 1.0, "guidance 2": 2.0}
PLAN_TOP_P = 0.7
WEAKEST = 3
DIVERSITY_PROMPTS = 40


@dataclass(frozen=True)
class Method:
    """
    A way to go on from the start.

    Attributes:
        recipe: in recipes/tiny.
        overrides: of the recipe.
        title: for the table.
    """

    recipe: str
    overrides: tuple[str, ...]
    title: str


def methods(steps: int) -> dict[str, Method]:
    """All of them, for so many steps of learning from rewards."""
    arguments = load_recipe(ROOT / "recipes/tiny/nft.yaml").training
    generations = load_recipe(ROOT / "recipes/tiny/nft.yaml").preference["num_generations"]
    pictures = steps * arguments["per_device_train_batch_size"] * generations
    supervised = (
        "model.train=[transformer]",
        f"training.max_steps={pictures // 32}",
        f"training.learning_rate={arguments['learning_rate']}",
        "training.muon_learning_rate=null",
        "training.lr_scheduler_type=constant_with_warmup",
        "training.lr_scheduler_kwargs={}",
        f"training.warmup_steps={arguments['warmup_steps']}",
        f"training.ema_decay={arguments['ema_decay']}",
        "training.compile_transformer=false",
        "training.bf16=false",
    )
    learned = (f"training.max_steps={steps}",)
    return {
        "nft": Method("nft", learned, "FlowNFTTrainer"),
        "grpo": Method("grpo", learned, "FlowGRPOTrainer"),
        "dpo": Method("dpo", learned, "FlowDPOTrainer, online"),
        "positives": Method("nft", (*learned, "preference.loss_type=positives"), "rejection fine-tuning"),
        "supervised": Method("generation", supervised, "more supervised training"),
    }


# The start


def make_start(work: Path, steps: int) -> None:
    """The packaged model with a new transformer, which is trained for a while as that of the packaged one was."""
    fresh = work / "fresh"
    if not (fresh / "made").exists():
        shutil.copytree(packaged_model_path(), fresh, dirs_exist_ok=True)
        model = Blip3oForConditionalGeneration.from_pretrained(packaged_model_path(), subfolder="model")
        torch.manual_seed(0)
        model.transformer.load_state_dict(Blip3oForConditionalGeneration(model.config).transformer.state_dict())
        model.save_pretrained(fresh / "model")
        (fresh / "made").touch()
    overrides = [
        f"output_dir={work / 'start'}",
        f"inputs.model={fresh}",
        f"inputs.encoder={fresh / 'target_encoder'}",
        f"inputs.decoder={fresh / 'decoder'}",
        "model.train=[transformer]",
        f"training.max_steps={steps}",
        "training.warmup_steps=100",
        "training.lr_scheduler_kwargs={num_decay_steps: 200}",
        "training.ema_decay=0.99",
        "training.evaluation_steps=0",
        "evaluation.num_attempts=1",
    ]
    train("generation", overrides)


def train(recipe: str, overrides: Sequence[str]) -> None:
    """Run a recipe, or go on with it, unless it is done."""
    opened = load_recipe(ROOT / f"recipes/tiny/{recipe}.yaml", list(overrides))
    folder = Path(opened.output_dir)
    if (folder / "summary.json").exists():
        print(f"{folder.name} is done")
        return
    run_recipe(opened, resume=any(folder.glob("checkpoints/checkpoint-*")))


def train_all(work: Path, names: Sequence[str], seeds: int, steps: int) -> None:
    for seed in range(seeds):
        for name in names:
            method = methods(steps)[name]
            train(
                method.recipe,
                [
                    f"output_dir={work / f'{name}-{seed}'}",
                    f"inputs.model={work / 'start/pipeline'}",
                    *([] if method.recipe != "generation" else _parts_of(work / "start/pipeline")),
                    *method.overrides,
                    f"training.seed={seed}",
                    f"data.seed={60 + seed}",
                ],
            )


def _parts_of(folder: Path) -> list[str]:
    return [f"inputs.encoder={folder / 'target_encoder'}", f"inputs.decoder={folder / 'decoder'}"]


# Scores


def opened(folder: Path) -> Blip3oPipeline:
    """A pipeline that samples its plans as the packaged one does, so that before and after are of the same plans."""
    pipe = Blip3oPipeline.from_pretrained(folder)
    pipe.register_to_config(plan_top_p=PLAN_TOP_P)
    return pipe


def drawn(pipe: Blip3oPipeline, texts: Sequence[str], seed: int = 1, scale: float = 1.0, attempts: int = 1) -> Drawing:
    """A picture for each prompt, from a plan, in `STEPS` steps."""
    return benchmark.draw(
        pipe, texts, seed=seed, plan=True, num_attempts=attempts, guidance_scale=scale, num_inference_steps=STEPS
    )


def kept(path: Path, per_family: int, make: Callable[[list[Prompt]], dict[str, Any]]) -> dict[str, Any]:
    """What is known of so many prompts; made and written where it is not."""
    if path.exists():
        found = json.loads(path.read_text())
        if found["per_family"] == per_family:
            return found
    found = {"per_family": per_family, **make(benchmark.held_out_prompts(per_family, seed=1))}
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(found))
    return found


def right(drawing: Drawing, prompts: Sequence[Prompt]) -> list[bool]:
    """Whether each picture shows its prompt."""
    return [verify(image, prompt).passed for image, prompt in zip(drawing.images, prompts, strict=True)]


def score(folder: Path, per_family: int) -> dict[str, Any]:
    """Whether each held-out prompt is drawn right by each sampler, and how different pictures of one prompt are."""

    def make(prompts: list[Prompt]) -> dict[str, Any]:
        pipe, texts = opened(folder / "pipeline"), [prompt.text for prompt in prompts]
        rates = {name: right(drawn(pipe, texts, scale=scale), prompts) for name, scale in SAMPLERS.items()}
        return {"families": [prompt.family for prompt in prompts], **rates, "diversity": _diversities(pipe, texts)}

    return kept(folder / "scores.json", per_family, make)


def _diversities(pipe: Blip3oPipeline, texts: Sequence[str]) -> list[float]:
    rollouts = Rollouts(pipe, num_generations=8, num_steps=STEPS)
    chosen = texts[:: max(1, len(texts) // DIVERSITY_PROMPTS)]
    return [
        diversity(rollouts([text], [seeded_generator(0, index)]))
        for index, text in enumerate(tqdm(chosen, desc="diversity", leave=False))
    ]


def best_of(work: Path, per_family: int, number: int = 4) -> dict[str, Any]:
    """The start, which draws several pictures: the first that it finds right itself, and whether any is right."""

    def make(prompts: list[Prompt]) -> dict[str, Any]:
        pipe, texts = opened(work / "start/pipeline"), [prompt.text for prompt in prompts]
        looked = drawn(pipe, texts, attempts=number)
        each = [right(drawn(pipe, texts, seed=1 + 10_000 * n), prompts) for n in range(number)]
        return {
            "by itself": right(looked, prompts),
            "any": [any(of_prompt) for of_prompt in zip(*each, strict=True)],
            "seconds": looked.cpu_seconds,
        }

    return kept(work / "start" / "best_of.json", per_family, make)


def is_understanding_equal(work: Path, folder: Path) -> bool:
    """Whether all but the transformer has the bits of the start."""
    before, after = (load_file(each / "pipeline/model/model.safetensors") for each in (work / "start", folder))
    others = [name for name in before if not name.startswith("transformer.")]
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in others)


# The report


def report(work: Path, names: Sequence[str], seeds: int, steps: int, per_family: int) -> None:
    started = now()
    names = [name for name in names if all((work / f"{name}-{n}" / "summary.json").exists() for n in range(seeds))]
    print(f"finished: {', '.join(names)}")
    start = score(work / "start", per_family)
    families = np.array(start["families"])
    base = {name: np.array(start[name], dtype=float) for name in SAMPLERS}
    plain = base["without guidance"]
    weakest = sorted(EVALUATION_FAMILIES, key=lambda name: plain[families == name].mean())[:WEAKEST]
    print(f"start: {plain.mean():.3f} without guidance, {base['guidance 2'].mean():.3f} with guidance 2")
    print(f"weakest families: {', '.join(weakest)}")
    scores: list[Score] = []
    for name in names:
        folders = [work / f"{name}-{seed}" for seed in range(seeds)]
        found = [score(folder, per_family) for folder in folders]
        minutes = np.mean([json.loads((f / "summary.json").read_text())["cpu_seconds"] / 60 for f in folders])
        diverse = min(np.mean(each["diversity"]) for each in found) / np.mean(start["diversity"])
        equal = all(is_understanding_equal(work, folder) for folder in folders)
        after = {sampler: np.array([each[sampler] for each in found], dtype=float) for sampler in SAMPLERS}
        is_weak = np.isin(families, weakest)
        rows = {
            "overall": np.ones(len(families), bool),
            "weakest three": is_weak,
            **{family: families == family for family in EVALUATION_FAMILIES},
        }
        title = methods(steps)[name].title
        print(f"\n{title}: {minutes:.1f} CPU minutes a run, diversity {diverse:.2f}, understanding bit-equal: {equal}")
        for sampler in SAMPLERS:
            for row, chosen in rows.items():
                change = paired_change(base[sampler][chosen], after[sampler][:, chosen])
                print(f"  {sampler:17s} {row:20s} {change}")
                scores.append(_row(f"{title}: {row}, {sampler}", change, int(chosen.sum()) * seeds))
        scores.append(Score("text-to-image", f"{title}: diversity kept", Figure(float(diverse)), DIVERSITY_PROMPTS))
        scores.append(Score("text-to-image", f"{title}: CPU minutes", Figure(float(minutes)), seeds))
    several = best_of(work, per_family)
    for name in ("by itself", "any"):
        change = paired_change(plain, [np.array(several[name], dtype=float)])
        print(f"best of 4, {name}: {change}")
        scores.append(_row(f"best of 4 at inference, {name}: overall, without guidance", change, len(plain)))
    print(f"best of 4, by itself: {several['seconds']:.2f} CPU seconds a picture")
    evaluation = Evaluation(
        benchmark="Learning from rewards on the tiny world",
        about=(
            "Shares of held-out prompts that are drawn right, before and after, with 95 % intervals of the change by "
            "a paired bootstrap over seeds and prompts."
        ),
        command="python benchmarks/preference.py report",
        date=now(),
        settings={
            "seeds": seeds,
            "steps": steps,
            "prompts per family": per_family,
            "sampling steps": STEPS,
            "plan_top_p": PLAN_TOP_P,
        },
        versions=versions(),
        scores=tuple(scores),
    )
    recipes = sorted({methods(steps)[name].recipe for name in names})
    inputs = {name: file_hash(ROOT / f"recipes/tiny/{name}.yaml") for name in recipes}
    inputs |= {"model": model_hash(packaged_model_path()), "start": model_hash(work / "start/pipeline")}
    words = ("python", "benchmarks/preference.py", "report")
    environment = environment_of(torch.device("cpu"), torch.float32)
    path = ROOT / "benchmarks/results/preference.json"
    path.parent.mkdir(exist_ok=True)
    Manifest(evaluation, words, inputs, environment, started).write(path)
    draw_curves(work, names, seeds, steps)
    draw_sheet(work, names)


def _row(name: str, change: Change, total: int) -> Score:
    beside = {"before": Figure(change.before), "change": Figure(change.value, change.interval)}
    return Score("text-to-image", name, Figure(change.after), total, beside)


def draw_curves(work: Path, names: Sequence[str], seeds: int, steps: int) -> None:
    """Rewards of held-out prompts along training, a line for each method that has them and a band over its seeds."""
    lines = {}
    for name in names:
        histories = [json.loads((work / f"{name}-{seed}" / HISTORY).read_text()) for seed in range(seeds)]
        runs = [{each["step"]: each["eval_reward"] for each in h if "eval_reward" in each} for h in histories]
        if all(runs):
            lines[methods(steps)[name].title] = runs
    bands(lines, "graded reward of held-out prompts", "without guidance, 10 steps", ROOT / "docs/preference.png")


def draw_sheet(work: Path, names: Sequence[str]) -> None:
    """The same prompts and seeds before, and after each method."""
    prompts = [prompt.text for prompt in benchmark.held_out_prompts(1, seed=2)]
    images: list[Image.Image] = []
    captions: list[str] = []
    for name in ("start", *(f"{name}-0" for name in names)):
        pipe = opened(work / name / "pipeline")
        images += [Image.fromarray(each) for each in drawn(pipe, prompts, seed=0).images]
        captions += [f"{name.removesuffix('-0')}: {prompt}" for prompt in prompts]
    contact_sheet(images, captions, columns=len(prompts), size=96).save(ROOT / "docs/preference_sheet.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("start", "train", "report"))
    parser.add_argument("--work", type=Path, default=Path("runs/preference"), help="folder of all runs")
    parser.add_argument("--methods", nargs="+", default=list(methods(1)), choices=list(methods(1)))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60, help="of learning from rewards")
    parser.add_argument("--start-steps", type=int, default=900, help="of the model that is started from")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    parser.add_argument("--per-family", type=int, default=50, help="held-out prompts of each family")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    if arguments.what == "start":
        make_start(arguments.work, arguments.start_steps)
    elif arguments.what == "train":
        train_all(arguments.work, arguments.methods, arguments.seeds, arguments.steps)
    else:
        report(arguments.work, arguments.methods, arguments.seeds, arguments.steps, arguments.per_family)


if __name__ == "__main__":
    main()
