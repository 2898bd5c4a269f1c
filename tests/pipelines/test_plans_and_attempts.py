"""Reason, then draw; look, then draw again: what plans and attempts equal, and one clear error for each misuse."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from blip3o_hf import Blip3oPipeline
from blip3o_hf.pipelines.checking import BackboneChecker, draw_until_shown
from blip3o_hf.pipelines.planning import SeededSampling, plan_conversations, spawn

PROMPTS = ["two red circles", "one small blue square above three green triangles", "a circle"]
FEATURES = torch.zeros(1, 16, 4, 4)


def seeded(*seeds):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return generators if len(seeds) > 1 else generators[0]


def draw(pipe, prompt, seeds, **options):
    return pipe(prompt, generator=seeded(*seeds), output_type="features", **options).image_features


def make_seer(make_pipeline, **settings):
    """A pipeline of random weights large enough that prompts and images matter, which writes short plans of words."""
    pipe = make_pipeline(tied=False, **settings)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in pipe.model.parameters():
            if parameter.ndim == 2:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    pipe.model.generation_config.suppress_tokens = pipe.processor.tokenizer.all_special_ids
    write_plans = pipe.write_plans
    pipe.write_plans = lambda *args, **kwargs: write_plans(*args, **{**kwargs, "max_new_tokens": 6})
    return pipe


@pytest.fixture(scope="module", params=["qwen", "llava"])
def pipe(make_pipeline, request):
    return make_seer(make_pipeline, backbone=request.param)


@pytest.fixture(scope="module")
def images(make_image):
    return [make_image(seed) for seed in range(4)]


@pytest.fixture
def sampler(pipe):
    """The pipeline, with plans that are sampled."""
    pipe.register_to_config(plan_top_p=0.9)
    yield pipe
    pipe.register_to_config(plan_top_p=None)


# Plans


def test_a_plan_is_drawn_as_a_prompt(pipe):
    output = pipe(PROMPTS, generator=seeded(1, 2, 3), plan=True, output_type="pt")
    assert len(output.plans) == 3 and all(output.plans)
    expected = pipe(output.plans, generator=seeded(1, 2, 3), output_type="pt")
    assert torch.equal(output.image_features, expected.image_features)
    assert torch.equal(output.images, expected.images)
    unplanned = pipe(PROMPTS, generator=seeded(1, 2, 3), output_type="pt")
    assert unplanned.plans is None
    assert (unplanned.image_features - output.image_features).abs().max() > 1e-2


def test_the_plan_of_an_edit_is_drawn_in_view_of_its_images(pipe, images, assert_close):
    shown = [images[:1], images[1:3]]
    output = pipe(PROMPTS[:2], image=shown, generator=seeded(1, 2), plan=True, output_type="features")
    expected = pipe(output.plans, image=shown, generator=seeded(1, 2), output_type="features")
    assert_close(output.image_features, expected.image_features, 1e-4)
    (plan,) = pipe.write_plans(PROMPTS[:1], images=shown[:1])
    assert plan == output.plans[0]
    assert pipe.write_plans(PROMPTS[:1], images=[images[1:2]]) != [plan] or pipe.write_plans(PROMPTS[:1]) != [plan]


def test_plans_are_what_the_backbone_answers_to_the_plan_instruction(pipe, images):
    for shown in ([], images[:1]):
        given = {"images": [shown] * len(PROMPTS)} if shown else {}
        plans = pipe.write_plans(PROMPTS, **given)
        for prompt, plan in zip(PROMPTS, plans, strict=True):
            assert pipe.write_plans([prompt], **({"images": [shown]} if shown else {})) == [plan]
            request = {"type": "text", "text": pipe.processor.plan_instruction.replace("{caption}", prompt)}
            content = [*({"type": "image", "image": image} for image in shown), request]
            inputs = pipe.processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
            tokens = pipe.model.generate(**inputs, max_new_tokens=6, do_sample=False)
            (answer,) = pipe.processor.post_process_image_text_to_text(tokens[:, inputs["input_ids"].shape[1] :])
            assert plan == answer.strip()


def test_whether_to_plan_is_saved_with_the_pipeline(make_pipeline, tmp_path):
    pipe = make_seer(make_pipeline)
    planned = pipe(PROMPTS[0], generator=seeded(1), plan=True, output_type="features")
    pipe.register_to_config(default_plan=True, default_num_attempts=3, plan_top_p=0.5)
    pipe.save_pretrained(tmp_path)
    loaded = Blip3oPipeline.from_pretrained(tmp_path)
    config = loaded.config
    assert (config.default_plan, config.default_num_attempts, config.plan_top_p) == (True, 3, 0.5)
    loaded.register_to_config(plan_top_p=None)
    assert loaded(PROMPTS[0], generator=seeded(1), output_type="features").plans is not None
    assert planned.plans is not None
    plain = loaded(PROMPTS[0], generator=seeded(1), plan=False, output_type="features")
    assert plain.plans is None
    assert torch.equal(plain.image_features, draw(pipe, PROMPTS[0], (1,), plan=False))


def test_a_default_plan_is_for_prompts_alone(make_pipeline):
    pipe = make_seer(make_pipeline)
    condition = pipe.encode_prompt(PROMPTS[:1])
    expected = pipe(condition=condition, generator=seeded(1), output_type="features").image_features
    pipe.register_to_config(default_plan=True)
    output = pipe(condition=condition, generator=seeded(1), output_type="features")
    assert output.plans is None and torch.equal(output.image_features, expected)
    assert pipe(image_features=expected).plans is None


def test_no_plan_is_written_unless_asked_for(pipe, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("a plan was written")

    monkeypatch.setattr(pipe.model, "generate", fail)
    assert pipe(PROMPTS[0], output_type="features").plans is None


def test_where_the_backbone_says_nothing_the_prompt_is_drawn(pipe, monkeypatch):
    end = torch.tensor([[pipe.processor.tokenizer.eos_token_id]])
    monkeypatch.setattr(pipe.model, "generate", lambda input_ids, **_: torch.cat([input_ids, end], dim=1))
    output = pipe(PROMPTS[0], generator=seeded(1), plan=True, output_type="features")
    assert output.plans == PROMPTS[:1]
    assert torch.equal(output.image_features, draw(pipe, PROMPTS[0], (1,)))


def test_a_sampled_plan_depends_on_its_own_generator_alone(sampler, assert_close):
    together = sampler(PROMPTS, generator=seeded(1, 2, 3), plan=True, output_type="features")
    for index, prompt in enumerate(PROMPTS):
        alone = sampler(prompt, generator=seeded(index + 1), plan=True, output_type="features")
        assert alone.plans == together.plans[index : index + 1]
        assert_close(alone.image_features[0], together.image_features[index], 1e-3)
    several = sampler(
        PROMPTS[0], num_images_per_prompt=4, generator=seeded(1, 2, 3, 4), plan=True, output_type="features"
    )
    assert several.plans[0] == together.plans[0] and len(set(several.plans)) > 1


def test_greedy_plans_of_a_prompt_are_one(pipe):
    output = pipe(PROMPTS[0], num_images_per_prompt=3, generator=seeded(1, 2, 3), plan=True, output_type="features")
    assert len(output.plans) == 3 and len(set(output.plans)) == 1


def test_sampling_by_noise_follows_the_softmax():
    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    generator = torch.Generator().manual_seed(0)
    sample = SeededSampling([generator])
    drawn = torch.stack([sample(None, scores).argmax() for _ in range(4000)])
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(shares, scores.softmax(-1)[0], rtol=0, atol=0.03)


def test_spawned_generators_are_those_of_their_parents():
    def draws(generators):
        return [torch.rand(2, generator=one).tolist() for one in generators]

    assert draws(spawn(seeded(1, 2), 2)) == draws([*spawn([seeded(1)], 1), *spawn([seeded(2)], 1)])
    parent = seeded(5)
    first, second = draws(spawn(parent, 2))
    assert first != second and draws(spawn(seeded(5), 2)) == [first, second]
    torch.manual_seed(7)
    unseeded = draws(spawn(None, 2))
    torch.manual_seed(7)
    assert draws(spawn(None, 2)) == unseeded


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"condition": torch.zeros(1, 5, 32)},
            ValueError,
            "`plan=True` is for prompts in words. Got no prompt. Leave it out.",
        ),
        (
            {"image_features": FEATURES},
            ValueError,
            "`plan=True` is for prompts in words. Got no prompt. Leave it out.",
        ),
        ({"prompt": " "}, ValueError, "A prompt must say something. Got ' '. Describe the image to draw."),
        ({"prompt": ["a circle", None]}, TypeError, "A prompt must be a string. Got NoneType."),
    ],
)
def test_bad_prompts_to_plan_for_are_refused_before_the_model_runs(pipe, monkeypatch, arguments, error, message):
    def fail(*args, **kwargs):
        raise AssertionError("a plan was written")

    monkeypatch.setattr(pipe.model, "generate", fail)
    with pytest.raises(error, match=re.escape(message)):
        pipe(**arguments, plan=True)


# Attempts


class Judge:
    """A checker that gives scores in turn, and remembers what it was shown."""

    def __init__(self, *scores):
        self.scores = list(scores)
        self.texts = []

    def __call__(self, images, texts):
        assert all(isinstance(image, Image.Image) for image in images) and len(images) == len(texts)
        self.texts.append(list(texts))
        return [self.scores.pop(0) for _ in texts]


def test_rejected_pictures_are_drawn_again_with_the_next_noise(pipe):
    judge = Judge(0.9, 0.1, 0.2, 0.3, 0.6, 0.2)
    output = pipe(PROMPTS, generator=seeded(1, 2, 3), num_attempts=3, checker=judge, output_type="pt")
    assert judge.texts == [PROMPTS, PROMPTS[1:], PROMPTS[1:2]]
    assert (output.attempts, output.scores, output.accepted) == ([1, 3, 2], [0.9, 0.3, 0.6], [True, False, True])


def test_an_attempt_goes_on_where_the_generator_was_left(pipe, assert_close):
    judge = Judge(0.4, 0.1, 0.3)
    generator = seeded(1)
    output = pipe(PROMPTS[0], generator=generator, num_attempts=3, checker=judge, output_type="pt")
    assert (output.attempts, output.scores, output.accepted) == ([3], [0.4], [False])
    same = seeded(1)
    drawn = [pipe(PROMPTS[0], generator=same, output_type="pt") for _ in range(3)]
    assert torch.equal(output.image_features, drawn[0].image_features)
    assert torch.equal(output.images, drawn[0].images)
    assert torch.equal(torch.rand(1, generator=generator), torch.rand(1, generator=same))
    last = pipe(PROMPTS[0], generator=seeded(1), num_attempts=3, checker=Judge(0.1, 0.2, 0.9), output_type="pt")
    assert torch.equal(last.image_features, drawn[2].image_features)


def test_pictures_are_judged_by_their_plans(sampler, images):
    judge = Judge(0.1, 0.9)
    output = sampler(
        PROMPTS[0], image=images[0], generator=seeded(1), plan=True, num_attempts=2, checker=judge, output_type="pt"
    )
    (first,), (second,) = judge.texts
    assert output.plans == [second] and first != second  # another plan, too


def test_what_is_looked_at_says_so_and_what_is_not_does_not(pipe):
    looked = pipe(PROMPTS[0], generator=seeded(1), num_attempts=1, checker=Judge(0.2))
    assert (looked.attempts, looked.accepted) == ([1], [False])
    plain = pipe(PROMPTS[0], generator=seeded(1))
    assert plain.attempts is plain.scores is plain.accepted is None
    assert np.array_equal(looked.images[0], plain.images[0])


def test_the_backbone_looks_where_nobody_else_does(pipe):
    output = pipe(PROMPTS[:2], generator=seeded(1, 2), num_attempts=2)
    assert len(output.scores) == 2 and all(0 <= score <= 1 for score in output.scores)
    look = BackboneChecker(pipe.model, pipe.processor)
    assert look(output.images, PROMPTS[:2]) == pytest.approx(output.scores, abs=1e-5)


def test_the_backbone_s_score_is_how_likely_it_answers_yes(pipe, images):
    look = BackboneChecker(pipe.model, pipe.processor)
    scores = look(images[:2], PROMPTS[:2])
    for image, prompt, score in zip(images[:2], PROMPTS[:2], scores, strict=True):
        asked = {"type": "text", "text": pipe.processor.check_instruction.replace("{caption}", prompt)}
        inputs = pipe.processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image", "image": image}, asked]}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            shares = pipe.model(**inputs).logits[0, -1].softmax(-1)
        yes, no = (shares[tokens].sum() for tokens in look.answers)
        assert score == pytest.approx(float(yes / (yes + no)), abs=1e-5)


def test_no_pixels_no_prompt_and_variations_are_not_looked_at(make_pipeline):
    pipe = make_seer(make_pipeline)
    pipe.register_to_config(default_num_attempts=3)
    condition = pipe.encode_prompt(PROMPTS[:1])
    for output in (
        pipe(PROMPTS[0], output_type="features"),
        pipe(condition=condition),
        pipe(image_features=FEATURES),
        pipe("make it blue", image=Image.new("RGB", (64, 64))),
        pipe(PROMPTS[0], image_features=FEATURES, strength=0.5),
    ):
        assert output.attempts is None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_attempts": 0}, ValueError, "`num_attempts` must be an integer from 1 to 1,000. Got 0."),
        ({"num_attempts": 1.5}, ValueError, "`num_attempts` must be an integer from 1 to 1,000. Got 1.5."),
        ({"checker": "yes"}, TypeError, "`checker` must be a function of pictures and texts. Got str."),
        (
            {"num_attempts": 2, "output_type": "features"},
            ValueError,
            "Got num_attempts=2, but only pictures can be looked at, and output_type is 'features'.",
        ),
        (
            {"num_attempts": 2, "image": Image.new("RGB", (64, 64))},
            ValueError,
            "Got num_attempts=2, but an instruction does not say what the picture is to show; a plan does",
        ),
        (
            {"num_attempts": 2, "prompt": None, "condition": torch.zeros(1, 5, 32)},
            ValueError,
            "Got num_attempts=2, but there is no prompt to compare them with.",
        ),
    ],
)
def test_attempts_that_make_no_sense_are_refused_before_anything_is_drawn(
    pipe, monkeypatch, arguments, error, message
):
    def fail(*args, **kwargs):
        raise AssertionError("something was drawn")

    monkeypatch.setattr(pipe, "generate_features", fail)
    with pytest.raises(error, match=re.escape(message)):
        pipe(**{"prompt": PROMPTS[0], **arguments})


def test_a_backbone_that_does_not_see_needs_somebody_who_does(make_pipeline):
    pipe = make_pipeline(backbone="llama")
    with pytest.raises(ValueError, match="this backbone reads text only; pass a `checker`"):
        pipe(PROMPTS[0], num_attempts=2)
    assert pipe(PROMPTS[0], num_attempts=2, checker=Judge(0.9)).attempts == [1]


def test_of_several_rejected_ones_the_best_is_kept():
    def draw_numbers(numbers, attempt):
        values = torch.tensor([[float(10 * number + attempt)] for number in numbers])
        return values, values.clone(), [f"{number}/{attempt}" for number in numbers]

    scores = {0: [0.1, 0.3, 0.2], 1: [0.4, 0.2, 0.7], 2: [0.5]}
    kept = draw_until_shown(draw_numbers, lambda pixels, numbers, plans: [scores[n].pop(0) for n in numbers], 3, 3)
    assert kept.numbers == [3, 3, 1] and kept.scores == [0.3, 0.7, 0.5] and kept.accepted == [False, True, True]
    assert kept.features.flatten().tolist() == kept.pixels.flatten().tolist() == [1.0, 12.0, 20.0]
    assert kept.plans == ["0/1", "1/2", "2/0"]


# Conversations


@pytest.mark.parametrize("has_image", [False, True])
def test_a_conversation_is_planned_as_its_prompt_is(pipe, images, has_image, assert_close):
    """What `generate(generation_mode="image")` reads: the plan in the place of what the last turn asks for."""
    processor, shown = pipe.processor, images[:1] * has_image
    history = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "two"}]
    for request in (processor.instruction.replace("{caption}", PROMPTS[0]), PROMPTS[0]):
        content = [*({"type": "image", "image": image} for image in shown), {"type": "text", "text": request}]
        asked = {"role": "user", "content": content}
        inputs = processor.apply_chat_template(
            [*history, asked], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        extra = {name: inputs[name] for name in ("pixel_values", "image_grid_thw") if name in inputs}
        ids, mask = plan_conversations(pipe.model, processor, inputs["input_ids"], inputs["attention_mask"], extra)
        text = processor.tokenizer.decode(ids[0][mask[0].bool()])
        opening = processor.tokenizer.decode(inputs["input_ids"][0]).partition("two<|im_end|>")[0]
        assert text.startswith(opening) and text.endswith("assistant\n[IMG]")
        said = text.rpartition("<|im_start|>user\n")[2].rpartition("<|im_end|>\n<|im_start|>assistant")[0]
        assert said.count("<|image_pad|>") == (inputs["input_ids"] == processor.image_token_id).sum()
        assert "please generate image based on the following caption: " in said and PROMPTS[0] not in said


def test_a_conversation_of_another_form_stays_as_it_is(pipe):
    ids = pipe.processor.tokenizer("two red circles", return_tensors="pt")["input_ids"]
    mask = torch.ones_like(ids)
    same, same_mask = plan_conversations(pipe.model, pipe.processor, ids, mask, {})
    assert same is ids and same_mask is mask
