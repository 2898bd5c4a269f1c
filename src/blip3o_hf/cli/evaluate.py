"""`blip3o-hf evaluate`: scores on the tiny world's held-out prompts, questions, pictures and edits."""

import argparse
import shlex

from .files import check_writable
from .models import add_model_argument, add_sampling_arguments, encoder_beside, load_pipeline

EXAMPLES = """examples:
  blip3o-hf evaluate
  blip3o-hf evaluate --per-family 100 --encoder runs/tiny/encoder --output results.json
  blip3o-hf card write runs/tiny/generation/pipeline --results results.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--per-family", type=int, default=80, help="prompts per family (default: %(default)s)")
    parser.add_argument("--per-kind", type=int, default=100, help="questions per kind (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of prompts, questions and noise (default: %(default)s)"
    )
    add_sampling_arguments(parser)
    parser.add_argument("--encoder", default=None, help="folder of the target encoder, for the reconstruction ceiling")
    parser.add_argument(
        "--output",
        default=None,
        help="also write rates, intervals, settings and versions to this JSON file, for cards",
    )
    parser.add_argument(
        "--pictures",
        type=int,
        default=100,
        help="pictures to describe and to draw again; 0: none (default: %(default)s)",
    )
    parser.add_argument("--per-edit", type=int, default=20, help="edits per kind; 0: none (default: %(default)s)")
    parser.add_argument("--plan", action="store_true", help="let the model write what it will draw, then draw that")
    parser.add_argument("--skip-understanding", action="store_true", help="score generation only")
    add_model_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    target = check_writable(arguments.output) if arguments.output else None
    for name in ("pictures", "per_edit"):
        if getattr(arguments, name) < 0:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 0. Got {getattr(arguments, name)}.")
    for name in ("per_family", "per_kind"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1. Got {getattr(arguments, name)}.")
    pipe = load_pipeline(arguments.model)

    from ..evaluation import shapes
    from ..evaluation.shapes_images import ABOUT_IMAGES
    from ..models.target_encoder import load_target_encoder

    prompts = shapes.held_out_prompts(arguments.per_family, arguments.seed)
    call = {"num_inference_steps": arguments.steps, "guidance_scale": arguments.guidance}
    columns = {
        "score": shapes.score_generation(pipe, prompts, arguments.seed, plan=arguments.plan, **call)[0],
        "chance": shapes.chance_rates(prompts, arguments.seed),
    }
    encoder_folder = arguments.encoder or encoder_beside(arguments.model)
    if encoder_folder:
        encoder, image_processor = load_target_encoder(encoder_folder)
        columns["ceiling"] = shapes.ceiling_rates(encoder, image_processor, pipe.decode_features, prompts)
    for rates in columns.values():
        rates["overall"] = shapes.overall(rates)
    print(f"{len(prompts)} held-out prompts, one image each, seed {arguments.seed}, 95 % intervals")
    print(f"{'family':<20}" + "".join(f"{name:>26}" for name in columns))
    for family in columns["score"]:
        print(f"{family:<20}" + "".join(f"{rates[family]!s:>26}" for rates in columns.values()))
    answers, further = {}, []
    if not arguments.skip_understanding:
        answers = shapes.score_understanding(pipe.model, pipe.processor, arguments.per_kind, arguments.seed)
        answers["overall"] = shapes.overall(answers)
        print(f"\n{answers['overall'].total} held-out questions, exact match")
        for kind, rate in answers.items():
            print(f"{kind:<20}{rate!s:>26}")
        if pipe.model.config.has_vision:
            further = _score_pictures(arguments, pipe, encoder_folder, call)
    if target:
        settings = _settings(arguments, pipe)
        about = f"{shapes.ABOUT} {ABOUT_IMAGES}" if further else shapes.ABOUT
        shapes.report(columns, answers, _command(arguments), settings, further, about).write(target)
    return 0


def _score_pictures(arguments: argparse.Namespace, pipe, encoder_folder: str | None, call: dict) -> list:
    """Captions, reconstructions and edits: printed, and as rows of a report."""
    from ..evaluation import shapes, shapes_images
    from ..pipelines.reconstruction import MODES, Blip3oReconstructionPipeline

    rows, seed = [], arguments.seed
    if arguments.pictures:
        scenes = shapes_images.held_out_scenes(arguments.pictures, seed)
        rate = shapes_images.score_captions(pipe.model, pipe.processor, scenes)
        print(f"\n{len(scenes)} held-out pictures\n{'captions':<32}{rate!s:>26}")
        rows.append(shapes.score("image-to-text", "captions", rate))
        if encoder_folder:
            reconstruct = Blip3oReconstructionPipeline.from_pipe(pipe, encoder_folder)
            for mode in MODES:
                rate, similar, *near = shapes_images.score_reconstruction(reconstruct, scenes, mode, seed, **call)
                means = "cosine {:.3f}, {:.1f} dB".format(*near)
                print(f"reconstruction, {mode:<16}{rate!s:>26}   objects {similar}, {means}")
                rows.append(shapes.score("image-to-image", f"reconstruction, {mode}", rate, {"objects": similar}))
    if arguments.per_edit:
        edits = shapes_images.held_out_edits(arguments.per_edit, seed)
        columns = shapes_images.edit_rates(shapes_images.draw_edits(pipe, edits, seed, **call), edits)
        columns["chance"] = shapes_images.edit_rates(shapes_images.other_edits(edits, seed), edits)["both"]
        for rates in columns.values():
            rates["overall"] = shapes.overall(rates)
        print(f"\n{len(edits)} held-out edits, one image each\n{'kind':<20}" + "".join(f"{n:>26}" for n in columns))
        for kind, rate in columns["both"].items():
            print(f"edit, {kind:<14}" + "".join(f"{rates[kind]!s:>26}" for rates in columns.values()))
            beside = {name: rates[kind] for name, rates in columns.items() if name != "both"}
            rows.append(shapes.score("image-to-image", f"edit, {kind}", rate, beside))
    return rows


def _command(arguments: argparse.Namespace) -> str:
    """What measures the same again."""
    from ..hub.provenance import public_name

    options = {
        "--model": public_name(arguments.model),
        "--per-family": arguments.per_family,
        "--per-kind": arguments.per_kind,
        "--seed": arguments.seed,
        "--steps": arguments.steps,
        "--guidance": arguments.guidance,
        "--encoder": arguments.encoder and public_name(arguments.encoder),
        "--pictures": arguments.pictures,
        "--per-edit": arguments.per_edit,
    }
    words = [str(word) for name, value in options.items() if value is not None for word in (name, value)]
    flags = [*["--plan"] * arguments.plan, *["--skip-understanding"] * arguments.skip_understanding]
    return shlex.join(["blip3o-hf", "evaluate", *words, *flags])


def _settings(arguments: argparse.Namespace, pipe) -> dict:
    """Of sampling and scoring, defaults of the model included."""
    config = pipe.config
    return {
        "seed": arguments.seed,
        "steps": config.default_num_inference_steps if arguments.steps is None else arguments.steps,
        "guidance": config.default_guidance_scale if arguments.guidance is None else arguments.guidance,
        "prompts per family": arguments.per_family,
        "questions per kind": 0 if arguments.skip_understanding else arguments.per_kind,
        "pictures": 0 if arguments.skip_understanding else arguments.pictures,
        "edits per kind": 0 if arguments.skip_understanding else arguments.per_edit,
        "plan": "written" if arguments.plan else "none",
        "dtype": str(pipe.model.dtype).removeprefix("torch."),
        "device": pipe.device.type,
    }
