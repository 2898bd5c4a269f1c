"""`blip3o-hf evaluate`: a benchmark by its name, or all of the tiny world: drawing, questions, pictures and edits."""

import argparse
import shlex

from .benchmark_runs import add_benchmark_arguments, check_options, run_benchmark
from .files import check_writable
from .models import add_model_argument, add_sampling_arguments, encoder_beside, load_pipeline, sampling_of

EXAMPLES = """examples:
  blip3o-hf evaluate
  blip3o-hf evaluate geneval --prompts geneval/prompts/evaluation_metadata.jsonl --output runs/geneval
  accelerate launch --num_processes 2 -m blip3o_hf.cli evaluate dpg --prompts dpg_bench/prompts --output runs/dpg
  blip3o-hf evaluate --attempts 1 --wordings
  blip3o-hf evaluate --per-family 100 --encoder runs/tiny/encoder --output results.json
  blip3o-hf card write runs/tiny/generation/pipeline --results results.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "benchmark", nargs="?", default=None, help="name, or module:Class of your own (default: all of the tiny world)"
    )
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
        help="folder of a benchmark's run; of the tiny world, a JSON file: the manifest, for cards",
    )
    parser.add_argument(
        "--pictures",
        type=int,
        default=100,
        help="pictures to describe and to draw again; 0: none (default: %(default)s)",
    )
    parser.add_argument("--per-edit", type=int, default=20, help="edits per kind; 0: none (default: %(default)s)")
    parser.add_argument(
        "--wordings", action="store_true", help="also score wordings of people against plain ones, and conversations"
    )
    parser.add_argument(
        "--checker",
        choices=("answer", "reading"),
        default="answer",
        help="how the model looks: by its answer yes or no, or by reading all objects (default: %(default)s)",
    )
    parser.add_argument("--skip-understanding", action="store_true", help="score generation only")
    add_model_argument(parser)
    add_benchmark_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    check_options(arguments, _defaults())
    if arguments.benchmark is not None:
        return run_benchmark(arguments)
    started = _now()
    target = None if arguments.output is None else check_writable(arguments.output)
    for name in ("pictures", "per_edit"):
        if getattr(arguments, name) < 0:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 0. Got {getattr(arguments, name)}.")
    for name in ("per_family", "per_kind"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1. Got {getattr(arguments, name)}.")
    pipe = load_pipeline(arguments.model)

    from ..shapes import benchmark
    from ..shapes.benchmark_images import ABOUT_IMAGES
    from ..shapes.benchmark_wordings import ABOUT_WORDINGS

    encoder_folder = arguments.encoder or encoder_beside(arguments.model)
    columns = _score_drawing(arguments, pipe, encoder_folder)
    answers, further, about = {}, [], [benchmark.ABOUT]
    sees = pipe.model.config.has_vision
    if not arguments.skip_understanding:
        answers = _score_questions(arguments, pipe, sees)
        if sees:
            further += _score_pictures(arguments, pipe, encoder_folder)
            further += _score_edits(arguments, pipe)
            about += [ABOUT_IMAGES] * bool(further)
    if arguments.wordings:
        further += _score_wordings(arguments, pipe, sees)
        about.append(ABOUT_WORDINGS)
    if target:
        settings = _settings(arguments, pipe)
        words = _words(arguments)
        command = shlex.join(["blip3o-hf", *words])
        report = benchmark.report(columns, answers, command, settings, further, " ".join(about))
        _manifest(arguments, pipe, report, words, started).write(target)
    return 0


def _call(arguments: argparse.Namespace, pipe) -> dict:
    """Arguments of the pipeline."""
    from ..shapes.checking import ReadingChecker

    call = sampling_of(arguments)
    is_reading = arguments.checker == "reading"
    return {**call, "checker": ReadingChecker(pipe.model, pipe.processor)} if is_reading else call


def _print_table(head: str, columns: dict, width: int = 20) -> None:
    """Rates by row and column."""
    print(f"{head:<{width}}" + "".join(f"{name:>26}" for name in columns))
    for row in next(iter(columns.values())):
        print(f"{row:<{width}}" + "".join(f"{rates[row]!s:>26}" for rates in columns.values()))


def _print_looking(drawing, passed) -> None:
    print(
        ", ".join(
            f"{name} {value:.2f}" if isinstance(value, float) else f"{name} {value.passed} of {value.total}"
            for name, value in drawing.looking(passed).items()
        )
    )


def _score_drawing(arguments: argparse.Namespace, pipe, encoder_folder: str | None) -> dict:
    """Rates by family: the model's, the same without looking again, chance, and ceiling."""
    from ..models.target_encoder import load_target_encoder
    from ..shapes import benchmark

    ceiling = load_target_encoder(encoder_folder) if encoder_folder else None  # before minutes of work
    prompts, seed = benchmark.held_out_prompts(arguments.per_family, arguments.seed), arguments.seed
    call = _call(arguments, pipe)
    score, drawing, passed = benchmark.score_generation(pipe, prompts, seed, **call)
    columns = {"score": score}
    if max(drawing.attempts) > 1:
        columns["one attempt"] = benchmark.score_generation(
            pipe, prompts, seed, **{**sampling_of(arguments), "num_attempts": 1}
        )[0]
    columns["chance"] = benchmark.chance_rates(prompts, seed)
    if ceiling is not None:
        columns["ceiling"] = benchmark.ceiling_rates(*ceiling, pipe.decode_features, prompts)
    for rates in columns.values():
        rates["overall"] = benchmark.overall(rates)
    print(f"{len(prompts)} held-out prompts, one image each, seed {seed}, 95 % intervals")
    _print_table("family", columns)
    _print_looking(drawing, passed)
    return columns


def _score_questions(arguments: argparse.Namespace, pipe, sees: bool) -> dict:
    """Accuracies by kind of question; those about places stand beside the others, and not in their sum."""
    from ..shapes import PLACE_KINDS, benchmark

    answers = benchmark.score_understanding(pipe.model, pipe.processor, arguments.per_kind, arguments.seed)
    answers["overall"] = benchmark.overall(answers)
    print(f"\n{answers['overall'].total} held-out questions, exact match")
    _print_table("kind", {"score": answers})
    places = benchmark.score_understanding(
        pipe.model, pipe.processor, arguments.per_kind, arguments.seed, kinds=PLACE_KINDS
    )
    print("\nplaces of one object, exact match")
    _print_table("kind", {"score": places})
    return {**answers, **places}


def _score_pictures(arguments: argparse.Namespace, pipe, encoder_folder: str | None) -> list:
    """Captions and reconstructions: printed, and as rows of a report."""
    from ..pipelines.reconstruction import MODES, Blip3oReconstructionPipeline
    from ..shapes import benchmark, benchmark_images

    if not arguments.pictures:
        return []
    scenes = benchmark_images.held_out_scenes(arguments.pictures, arguments.seed)
    rate = benchmark_images.score_captions(pipe.model, pipe.processor, scenes)
    print(f"\n{len(scenes)} held-out pictures\n{'captions':<32}{rate!s:>26}")
    rows = [benchmark.score("image-to-text", "captions", rate)]
    if encoder_folder:
        reconstruct, call = Blip3oReconstructionPipeline.from_pipe(pipe, encoder_folder), sampling_of(arguments)
        for mode in MODES:
            rate, similar, *near = benchmark_images.score_reconstruction(
                reconstruct, scenes, mode, arguments.seed, **call
            )
            means = "cosine {:.3f}, {:.1f} dB".format(*near)
            print(f"reconstruction, {mode:<16}{rate!s:>26}   objects {similar}, {means}")
            rows.append(benchmark.score("image-to-image", f"reconstruction, {mode}", rate, {"objects": similar}))
    return rows


def _score_edits(arguments: argparse.Namespace, pipe) -> list:
    """Edits by kind: printed, and as rows of a report."""
    from ..shapes import benchmark, benchmark_images

    if not arguments.per_edit:
        return []
    edits, seed = benchmark_images.held_out_edits(arguments.per_edit, arguments.seed), arguments.seed
    drawing = benchmark_images.draw_edits(pipe, edits, seed, **_call(arguments, pipe))
    columns, rows = benchmark_images.edit_rates(drawing.images, edits), []
    columns["chance"] = benchmark_images.edit_rates(benchmark_images.other_edits(edits, seed), edits)["both"]
    for rates in columns.values():
        rates["overall"] = benchmark.overall(rates)
    print(f"\n{len(edits)} held-out edits, one image each")
    _print_table("kind", {n: {f"edit, {kind}": rate for kind, rate in r.items()} for n, r in columns.items()})
    for kind, rate in columns["both"].items():
        beside = {name: rates[kind] for name, rates in columns.items() if name != "both"}
        rows.append(benchmark.score("image-to-image", f"edit, {kind}", rate, beside))
    return rows


def _score_wordings(arguments: argparse.Namespace, pipe, sees: bool) -> list:
    """Prompts and questions in plain and in natural words, and conversations: printed, and as rows of a report."""
    from ..shapes import benchmark, benchmark_wordings

    rates, rows = {}, []
    for wording, prompts in benchmark_wordings.worded_prompts().items():
        score = benchmark.score_generation(pipe, prompts, arguments.seed, **sampling_of(arguments))[0]
        rates[f"prompts, {wording}"] = benchmark.overall(score)
    if sees:
        questions = benchmark_wordings.worded_questions()
        score = benchmark_wordings.score_worded_questions(pipe.model, pipe.processor, questions)
        rates |= {f"questions, {wording}": rate for wording, rate in score.items()}
        scripts = benchmark_wordings.chat_scripts()
        rates["chat turns"], blank = benchmark_wordings.score_chat(pipe, scripts, arguments.seed)
    print("\nwordings")
    _print_table("", {"score": rates})
    if sees:
        print(f"blank answers in conversations: {blank}")
    for name, rate in rates.items():
        task = "text-to-image" if name.startswith("prompts") else "visual-question-answering"
        rows.append(benchmark.score(task, name, rate))
    return rows


def _defaults() -> dict:
    """What the options are when nothing is given."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return vars(parser.parse_args([]))


def _now() -> str:
    from ..hub.provenance import now

    return now()


def _manifest(arguments: argparse.Namespace, pipe, report, words: list[str], started: str):
    """What a report takes to be made again."""
    from ..assets import resolve_model
    from ..evaluation.manifests import Manifest, environment_of, folder_hash, model_hash

    inputs = {"model": model_hash(resolve_model(arguments.model))}
    if arguments.encoder:
        inputs["encoder"] = folder_hash(arguments.encoder)
    return Manifest(report, tuple(words), inputs, environment_of(pipe.device, pipe.model.dtype), started)


def _words(arguments: argparse.Namespace) -> list[str]:
    """What measures the same again, without where it is written."""
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
        "--attempts": arguments.attempts,
        "--checker": None if arguments.checker == "answer" else arguments.checker,
    }
    words = [str(word) for name, value in options.items() if value is not None for word in (name, value)]
    flags = [] if arguments.plan is None else ["--plan" if arguments.plan else "--no-plan"]
    flags += ["--wordings"] * arguments.wordings + ["--skip-understanding"] * arguments.skip_understanding
    return ["evaluate", *words, *flags]


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
        "plan": "written" if (config.default_plan if arguments.plan is None else arguments.plan) else "none",
        "attempts": config.default_num_attempts if arguments.attempts is None else arguments.attempts,
        "dtype": str(pipe.model.dtype).removeprefix("torch."),
        "device": pipe.device.type,
    }
