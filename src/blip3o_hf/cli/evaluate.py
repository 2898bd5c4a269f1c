"""`blip3o-hf evaluate`: scores on the tiny world's held-out prompts and questions, with chance and ceiling."""

import argparse
import shlex

from .files import check_writable
from .models import add_model_argument, encoder_beside, load_pipeline

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
    parser.add_argument("--steps", type=int, default=None, help="denoising steps (default: the model's)")
    parser.add_argument("--guidance", type=float, default=None, help="guidance scale (default: the model's)")
    parser.add_argument("--encoder", default=None, help="folder of the target encoder, for the reconstruction ceiling")
    parser.add_argument(
        "--output",
        default=None,
        help="also write rates, intervals, settings and versions to this JSON file, for cards",
    )
    parser.add_argument("--skip-understanding", action="store_true", help="score generation only")
    add_model_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    target = check_writable(arguments.output) if arguments.output else None
    for name in ("per_family", "per_kind"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1. Got {getattr(arguments, name)}.")
    pipe = load_pipeline(arguments.model)

    from ..evaluation import shapes
    from ..models.target_encoder import load_target_encoder

    prompts = shapes.held_out_prompts(arguments.per_family, arguments.seed)
    call = {"num_inference_steps": arguments.steps, "guidance_scale": arguments.guidance}
    columns = {
        "score": shapes.score_generation(pipe, prompts, arguments.seed, **call)[0],
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
    answers = {}
    if not arguments.skip_understanding:
        answers = shapes.score_understanding(pipe.model, pipe.processor, arguments.per_kind, arguments.seed)
        answers["overall"] = shapes.overall(answers)
        print(f"\n{answers['overall'].total} held-out questions, exact match")
        for kind, rate in answers.items():
            print(f"{kind:<20}{rate!s:>26}")
    if target:
        shapes.report(columns, answers, _command(arguments), _settings(arguments, pipe)).write(target)
    return 0


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
    }
    words = [str(word) for name, value in options.items() if value is not None for word in (name, value)]
    return shlex.join(["blip3o-hf", "evaluate", *words, *["--skip-understanding"] * arguments.skip_understanding])


def _settings(arguments: argparse.Namespace, pipe) -> dict:
    """Of sampling and scoring, defaults of the model included."""
    config = pipe.config
    return {
        "seed": arguments.seed,
        "steps": config.default_num_inference_steps if arguments.steps is None else arguments.steps,
        "guidance": config.default_guidance_scale if arguments.guidance is None else arguments.guidance,
        "prompts per family": arguments.per_family,
        "questions per kind": 0 if arguments.skip_understanding else arguments.per_kind,
        "dtype": str(pipe.model.dtype).removeprefix("torch."),
        "device": pipe.device.type,
    }
