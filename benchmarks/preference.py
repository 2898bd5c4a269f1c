"""Learning from rewards on a tiny BLIP3-o: its three trainers and what they must beat, over seeds. See README.md.

python benchmarks/preference.py start            # a model that leaves room, trained for a few minutes
python benchmarks/preference.py train            # every method and seed; give it again to go on
python benchmarks/preference.py report           # score all of them, the table, the curve and the sheet
"""
# ruff: noqa: T201 - a script that reports on standard output

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure as Plot
from PIL import Image
from safetensors.torch import load_file
from tqdm import tqdm

from blip3o_hf import Blip3oForConditionalGeneration, Blip3oPipeline, packaged_model_path
from blip3o_hf.evaluation.manifests import Manifest, environment_of, file_hash, model_hash
from blip3o_hf.evaluation.sheets import contact_sheet
from blip3o_hf.evaluation.statistics import Change, paired_change
from blip3o_hf.files import written_whole
from blip3o_hf.hub.provenance import now, versions
from blip3o_hf.hub.results import Evaluation, Figure, Score
from blip3o_hf.preference.reward_task import diversity
from blip3o_hf.preference.rollouts import Rollouts
from blip3o_hf.shapes import EVALUATION_FAMILIES, benchmark, verify
from blip3o_hf.training.recipes import load_recipe
from blip3o_hf.training.runs import run_recipe
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
        "awm": Method("nft", (*learned, "preference.loss_type=awm"), "FlowNFTTrainer, awm"),
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


def score(folder: Path, per_family: int) -> dict[str, Any]:
    """Whether each held-out prompt is drawn right by each sampler, and how different pictures of one prompt are."""
    path = folder / "scores.json"
    if path.exists():
        found = json.loads(path.read_text())
        if found["per_family"] == per_family:
            return found
    pipe = opened(folder / "pipeline")
    prompts = benchmark.held_out_prompts(per_family, seed=1)
    texts = [prompt.text for prompt in prompts]
    found: dict[str, Any] = {"per_family": per_family, "families": [prompt.family for prompt in prompts]}
    for name, scale in SAMPLERS.items():
        drawing = benchmark.draw(
            pipe, texts, seed=1, plan=True, num_attempts=1, guidance_scale=scale, num_inference_steps=STEPS
        )
        found[name] = [verify(image, prompt).passed for image, prompt in zip(drawing.images, prompts, strict=True)]
    found["diversity"] = [float(value) for value in _diversities(pipe, texts)]
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(found))
    return found


def _diversities(pipe: Blip3oPipeline, texts: Sequence[str]) -> list[float]:
    rollouts = Rollouts(pipe, num_generations=8, num_steps=STEPS)
    chosen = texts[:: max(1, len(texts) // DIVERSITY_PROMPTS)]
    return [
        diversity(rollouts([text], [seeded_generator(0, index)]))
        for index, text in enumerate(tqdm(chosen, desc="diversity", leave=False))
    ]


def best_of(work: Path, per_family: int, number: int = 4) -> dict[str, Any]:
    """The start, which draws several pictures: the first that it finds right itself, and whether any is right."""
    path = work / "start" / "best_of.json"
    if path.exists():
        return json.loads(path.read_text())
    pipe = opened(work / "start/pipeline")
    prompts = benchmark.held_out_prompts(per_family, seed=1)
    texts = [prompt.text for prompt in prompts]
    began = time.process_time()
    looked = benchmark.draw(
        pipe, texts, seed=1, plan=True, num_attempts=number, guidance_scale=1.0, num_inference_steps=STEPS
    )
    seconds = (time.process_time() - began) / len(texts)
    draws = [
        benchmark.draw(
            pipe, texts, seed=1 + 10_000 * n, plan=True, num_attempts=1, guidance_scale=1.0, num_inference_steps=STEPS
        ).images
        for n in range(number)
    ]
    found = {
        "by itself": [verify(image, prompt).passed for image, prompt in zip(looked.images, prompts, strict=True)],
        "any": [any(verify(each[i], prompt).passed for each in draws) for i, prompt in enumerate(prompts)],
        "seconds": seconds,
    }
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(found))
    return found


def is_understanding_equal(work: Path, folder: Path) -> bool:
    """Whether all but the transformer has the bits of the start."""
    before, after = (load_file(each / "pipeline/model/model.safetensors") for each in (work / "start", folder))
    others = [name for name in before if not name.startswith("transformer.")]
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in others)


# The report


def report(work: Path, names: Sequence[str], seeds: int, steps: int, per_family: int) -> None:
    started = now()
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
        if not all((folder / "summary.json").exists() for folder in folders):
            print(f"{name}: not finished")
            continue
        found = [score(folder, per_family) for folder in folders]
        minutes = np.mean([json.loads((f / "summary.json").read_text())["cpu_seconds"] / 60 for f in folders])
        kept = min(np.mean(each["diversity"]) for each in found) / np.mean(start["diversity"])
        equal = all(is_understanding_equal(work, folder) for folder in folders)
        after = {sampler: np.array([each[sampler] for each in found], dtype=float) for sampler in SAMPLERS}
        is_weak = np.isin(families, weakest)
        rows = {
            "overall": np.ones(len(families), bool),
            "weakest three": is_weak,
            **{family: families == family for family in EVALUATION_FAMILIES},
        }
        title = methods(steps)[name].title
        print(f"\n{title}: {minutes:.1f} CPU minutes a run, diversity {kept:.2f}, understanding bit-equal: {equal}")
        for sampler in SAMPLERS:
            for row, chosen in rows.items():
                change = paired_change(base[sampler][chosen], after[sampler][:, chosen])
                print(f"  {sampler:17s} {row:20s} {change}")
                scores.append(_row(f"{title}: {row}, {sampler}", change, int(chosen.sum()) * seeds))
        scores.append(Score("text-to-image", f"{title}: diversity kept", Figure(float(kept)), DIVERSITY_PROMPTS))
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
    """Rewards of held-out prompts along the CPU time, a line for each method and a band over its seeds."""
    plot = Plot(figsize=(8, 5))
    panel = plot.subplots()
    for name in names:
        runs = []
        for seed in range(seeds):
            states = sorted((work / f"{name}-{seed}").glob("checkpoints/checkpoint-*/trainer_state.json"))
            history = json.loads(max(states, key=lambda p: p.stat().st_mtime).read_text())["log_history"]
            runs.append([(each["step"], each["eval_reward"]) for each in history if "eval_reward" in each])
        if not all(runs):
            continue
        at = [step for step, _ in runs[0]]
        values = np.array([[value for _, value in run] for run in runs])
        panel.plot(at, values.mean(axis=0), marker="o", label=methods(steps)[name].title)
        panel.fill_between(at, values.min(axis=0), values.max(axis=0), alpha=0.2)
    panel.set(xlabel="step", ylabel="graded reward of held-out prompts", title="without guidance, 10 steps")
    panel.legend()
    plot.tight_layout()
    with written_whole(ROOT / "docs/preference.png") as temporary:
        plot.savefig(temporary, format="png", dpi=90)


def draw_sheet(work: Path, names: Sequence[str]) -> None:
    """The same prompts and seeds before, and after each method."""
    prompts = [prompt.text for prompt in benchmark.held_out_prompts(1, seed=2)]
    images: list[Image.Image] = []
    captions: list[str] = []
    for name in ("start", *(f"{name}-0" for name in names)):
        pipe = opened(work / name / "pipeline")
        drawing = benchmark.draw(
            pipe, prompts, seed=0, plan=True, num_attempts=1, guidance_scale=1.0, num_inference_steps=STEPS
        )
        images += [Image.fromarray(each) for each in drawing.images]
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
