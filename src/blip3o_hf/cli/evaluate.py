"""`blip3o-hf evaluate`: scores on the tiny world's held-out prompts and questions, with chance and ceiling."""

import argparse
import json

from ..files import written_whole
from .files import check_writable
from .models import add_model_argument, encoder_beside, load_pipeline

EXAMPLES = """examples:
  blip3o-hf evaluate
  blip3o-hf evaluate --per-family 100 --encoder runs/tiny/encoder --json scores.json
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
    parser.add_argument("--json", default=None, help="also write the scores to this file")
    parser.add_argument("--skip-understanding", action="store_true", help="score generation only")
    add_model_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    target = check_writable(arguments.json) if arguments.json else None
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
    print(f"{len(prompts)} held-out prompts, one image each, seed {arguments.seed}, 95 % intervals")
    print(f"{'family':<20}" + "".join(f"{name:>26}" for name in columns))
    for family in columns["score"]:
        print(f"{family:<20}" + "".join(f"{rates[family]!s:>26}" for rates in columns.values()))
    totals = {name: shapes.overall(rates) for name, rates in columns.items()}
    print(f"{'overall':<20}" + "".join(f"{rate!s:>26}" for rate in totals.values()))
    report = {
        name: {family: [rate.passed, rate.total] for family, rate in rates.items()} for name, rates in columns.items()
    }
    if not arguments.skip_understanding:
        answers = shapes.score_understanding(pipe.model, pipe.processor, arguments.per_kind, arguments.seed)
        print(f"\n{arguments.per_kind * len(answers)} held-out questions, exact match")
        for kind, rate in [*answers.items(), ("overall", shapes.overall(answers))]:
            print(f"{kind:<20}{rate!s:>26}")
        report["understanding"] = {kind: [rate.passed, rate.total] for kind, rate in answers.items()}
    if target:
        with written_whole(target) as temporary:
            temporary.write_text(json.dumps(report, indent=2) + "\n")
    return 0
