"""The tiny world's benchmark: held-out prompts drawn and verified, held-out questions answered."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ..evaluation.answers import answer
from ..evaluation.benchmark import seeded_batches
from ..evaluation.statistics import Rate
from ..hub.provenance import now, versions
from ..hub.results import Evaluation, Figure, Score
from ..models.modeling_blip3o import Blip3oForConditionalGeneration
from ..models.processing_blip3o import Blip3oProcessor
from ..models.target_encoder import extract_features, normalize, stack_images
from ..pipelines.pipeline_blip3o import Blip3oPipeline
from . import (
    COMPARISON,
    EVALUATION_FAMILIES,
    PLACE_KINDS,
    QUESTION_KINDS,
    Prompt,
    Question,
    question_kinds,
    render,
    sample_comparison,
    sample_example,
    sample_question,
    sample_scene,
    verify,
    write_plan,
)

KINDS_OF_UNSEEN = {"unseen_combination": "colors", "unseen_relation": "position"}
ASKED_KINDS = (*QUESTION_KINDS, COMPARISON)
BENCHMARK = "Tiny world of coloured shapes"
ABOUT = (
    "95 % Wilson intervals. One picture for each prompt, nothing chosen. A picture passes when the programmatic "
    "verifier finds exactly the objects, colours, counts, relation and background that the prompt states, and nothing "
    "else. All prompts are held out of training; `unseen_combination` asks for colour and shape pairs, "
    "`unseen_relation` for relations, that no training picture shows. *Chance* is the pass rate of clean pictures of "
    "other prompts of the same kind (`colors` for `unseen_combination`, `position` for `unseen_relation`): what a "
    "model that ignores the prompt reaches. *Ceiling* is that of true pictures after the target encoder and the "
    "decoder: what a perfect generator would reach. *One attempt* is the model's score when it does not look at what "
    "it drew. Questions are about scenes held out of all training; an answer counts when it is exactly right. *Row*, "
    "*column*, *cell* and *zone* ask for the place of one object and are not part of the overall score."
)


def held_out_prompts(
    num_per_family: int, seed: int = 0, families: Sequence[str] = EVALUATION_FAMILIES
) -> list[Prompt]:
    """Held-out prompts, `num_per_family` of each family; one seed always gives the same ones."""
    return [
        sample_example(np.random.default_rng((seed, index, position)), split="test", family=family).prompt
        for position, family in enumerate(families)
        for index in range(num_per_family)
    ]


def plans_of(prompts: Sequence[Prompt], seed: int = 0) -> list[str]:
    """For each prompt the plan of a held-out scene that shows it: a long text that leaves nothing open."""
    return [
        write_plan(sample_scene(prompt, np.random.default_rng((seed, 17, index)), split="test"))
        for index, prompt in enumerate(prompts)
    ]


def rates_by_family(prompts: Sequence[Prompt], passed: Sequence[bool]) -> dict[str, Rate]:
    rates: dict[str, Rate] = {}
    for prompt, ok in zip(prompts, passed, strict=True):
        rates[prompt.family] = rates.get(prompt.family, Rate(0, 0)) + Rate(int(ok), 1)
    return rates


@dataclass
class Drawing:
    """
    What a pipeline drew.

    Attributes:
        images: one uint8 array `[64, 64, 3]` each.
        attempts: how often each was drawn; 1 where nothing was looked at.
        accepted: whether the model itself found each right; `None` where it did not look.
        cpu_seconds: of the process, for each image.
    """

    images: list[np.ndarray]
    attempts: list[int]
    accepted: list[bool | None]
    cpu_seconds: float

    def looking(self, passed: Sequence[bool]) -> dict[str, Any]:
        """What looking cost and gave: draws per image, and the shares of bad images accepted and of good rejected."""
        looked = [(ok, accepted) for ok, accepted in zip(passed, self.accepted, strict=True) if accepted is not None]
        return {
            "draws per image": sum(self.attempts) / len(self.attempts),
            "CPU seconds per image": self.cpu_seconds,
            "bad images accepted": Rate(
                sum(accepted for ok, accepted in looked if not ok), sum(not ok for ok, _ in looked)
            ),
            "good images rejected": Rate(
                sum(not accepted for ok, accepted in looked if ok), sum(ok for ok, _ in looked)
            ),
        }


def draw(
    pipe: Blip3oPipeline,
    prompts: Sequence[str],
    seed: int = 0,
    batch_size: int = 32,
    images: Sequence[Sequence[Image.Image]] | None = None,
    **call,
) -> Drawing:
    """One image for each prompt, and its input images where there are; image `i` has the generator `seed + i`."""
    pipe.set_progress_bar_config(disable=True)
    drawing, start = Drawing([], [], [], 0.0), time.process_time()
    numbers = list(range(len(prompts)))
    for batch, generators in seeded_batches(numbers, seed, batch_size, "drawing"):
        shown: dict[str, Any] = {} if images is None else {"image": [list(images[number]) for number in batch]}
        output = pipe([prompts[number] for number in batch], generator=generators, **shown, **call)
        drawing.images += [np.asarray(picture) for picture in output.images]
        drawing.attempts += output.attempts or [1] * len(batch)
        drawing.accepted += output.accepted or [None] * len(batch)
    drawing.cpu_seconds = (time.process_time() - start) / max(1, len(prompts))
    return drawing


def score_generation(
    pipe: Blip3oPipeline, prompts: Sequence[Prompt], seed: int = 0, batch_size: int = 32, **call
) -> tuple[dict[str, Rate], Drawing, list[bool]]:
    """Verifier pass rates by family, what was drawn, and which images pass."""
    drawing = draw(pipe, [prompt.text for prompt in prompts], seed, batch_size, **call)
    passed = [verify(image, prompt).passed for image, prompt in zip(drawing.images, prompts, strict=True)]
    return rates_by_family(prompts, passed), drawing, passed


def chance_rates(prompts: Sequence[Prompt], seed: int = 0) -> dict[str, Rate]:
    """
    Pass rates of clean pictures of another prompt of the same kind: what a model that ignores the prompt reaches.

    The kind of an unseen combination is `colors`, that of an unseen relation `position`.
    """
    passed = []
    for index, prompt in enumerate(prompts):
        rng = np.random.default_rng((seed, 7, index))
        other = sample_example(rng, split="test", family=KINDS_OF_UNSEEN.get(prompt.family, prompt.family)).scene
        passed.append(verify(render(other), prompt).passed)
    return rates_by_family(prompts, passed)


def reconstruct(
    encoder, image_processor, decode: Callable[[torch.Tensor], torch.Tensor], images: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Images through features and back: what the decoder makes of the encoder's own features."""
    with torch.no_grad():
        sample = decode(extract_features(encoder, normalize(image_processor, stack_images(images))))
    sample = ((sample.float() / 2 + 0.5).clamp(0, 1) * 255).round().byte()
    return list(sample.permute(0, 2, 3, 1).numpy())


def ceiling_rates(
    encoder,
    image_processor,
    decode: Callable[[torch.Tensor], torch.Tensor],
    prompts: Sequence[Prompt],
    seed: int = 0,
    batch_size: int = 64,
) -> dict[str, Rate]:
    """Pass rates of true pictures of the prompts after reconstruction: what a perfect generator would reach."""
    passed: list[bool] = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        truths = []
        for index, prompt in enumerate(batch, start):
            truths.append(render(sample_scene(prompt, np.random.default_rng((seed, 11, index)), split="test")))
        pictures = reconstruct(encoder, image_processor, decode, truths)
        passed += [verify(picture, prompt).passed for picture, prompt in zip(pictures, batch, strict=True)]
    return rates_by_family(prompts, passed)


def held_out_questions(kind: str, number: int, seed: int = 0) -> list[tuple[list[np.ndarray], Question]]:
    """Held-out pictures, one or for a comparison two, with a question each; one seed always gives the same ones."""
    items, index, kind_number = [], 0, (*ASKED_KINDS, *PLACE_KINDS).index(kind)
    while len(items) < number:
        rng = np.random.default_rng((seed, kind_number, index))
        index += 1
        scenes = [sample_example(rng, split="test").scene for _ in range(1 + (kind == COMPARISON))]
        if kind == COMPARISON:
            question = sample_comparison(*scenes, rng)
        elif kind in question_kinds(scenes[0], (kind,)):
            question = sample_question(scenes[0], rng, kind)
        else:
            continue
        items.append(([render(scene) for scene in scenes], question))
    return items


def score_understanding(
    model: Blip3oForConditionalGeneration,
    processor: Blip3oProcessor,
    num_per_kind: int = 100,
    seed: int = 0,
    batch_size: int = 64,
    kinds: Sequence[str] = ASKED_KINDS,
) -> dict[str, Rate]:
    """
    Exact-match accuracy by kind of question, on scenes held out of all training; `comparison` shows two.

    Args:
        kinds: of `QUESTION_KINDS` and `PLACE_KINDS`, or `COMPARISON`.
    """
    items = [item for kind in kinds for item in held_out_questions(kind, num_per_kind, seed)]
    rates = {kind: Rate(0, 0) for kind in kinds}
    for (_, question), is_right in zip(items, answered(model, processor, items, batch_size), strict=True):
        rates[question.kind] += Rate(int(is_right), 1)
    return rates


def answered(
    model: Blip3oForConditionalGeneration,
    processor: Blip3oProcessor,
    items: Sequence[tuple[list[np.ndarray], Question]],
    batch_size: int = 64,
) -> Iterator[bool]:
    """Whether each question is answered exactly; `items` as `held_out_questions` gives them."""
    for start in tqdm(range(0, len(items), batch_size), desc="asking", leave=False):
        batch = items[start : start + batch_size]
        replies = answer(
            model, processor, [image for image, _ in batch], [q.text for _, q in batch], max_new_tokens=24
        )
        yield from (reply == question.answer for reply, (_, question) in zip(replies, batch, strict=True))


def overall(rates: dict[str, Rate]) -> Rate:
    """All families together."""
    return sum(rates.values(), Rate(0, 0))


def report(
    columns: Mapping[str, Mapping[str, Rate]],
    answers: Mapping[str, Rate],
    command: str,
    settings: Mapping[str, Any],
    further: Sequence[Score] = (),
    about: str = ABOUT,
) -> Evaluation:
    """
    What was measured, as a file that a model card takes up.

    Args:
        columns: rates by family; `score` is the model's, the others are what to compare it with.
        answers: accuracies by kind of question.
        command, settings, about: as in [`~hub.results.Evaluation`].
        further: rows of other tasks.
    """
    others = {name: rates for name, rates in columns.items() if name != "score"}
    drawn = [
        score("text-to-image", family, rate, {name: rates[family] for name, rates in others.items()})
        for family, rate in columns["score"].items()
    ]
    answered = [score("visual-question-answering", kind, rate) for kind, rate in answers.items()]
    return Evaluation(BENCHMARK, about, command, now(), dict(settings), versions(), (*drawn, *answered, *further))


def score(task: str, name: str, rate: Rate, beside: Mapping[str, Rate] | None = None) -> Score:
    """A rate, and others to compare it with, as a row of a benchmark."""
    figures = {other: Figure(compared.value, compared.interval) for other, compared in (beside or {}).items()}
    return Score(task, name, Figure(rate.value, rate.interval), rate.total, figures)
