"""The tiny world keeps its promises: same seed, same data; held-out things stay out; what is said is true."""

import re
from collections import Counter

import numpy as np
import pytest

from blip3o_hf.data.shapes import (
    CELL,
    COLORS,
    COMPARISON,
    EVALUATION_FAMILIES,
    FAMILIES,
    HELD_OUT_COMBINATIONS,
    HELD_OUT_RELATIONS,
    INVERSE_RELATION,
    NUMBER_WORDS,
    QUESTION_KINDS,
    SHAPES,
    TRAINING_FAMILIES,
    ObjectGroup,
    Prompt,
    Scene,
    SceneObject,
    cell_words,
    describe,
    has_held_out_relation,
    is_held_out_scene,
    is_held_out_text,
    is_training_scene,
    long_caption,
    parse_description,
    question_kinds,
    render,
    sample_comparison,
    sample_example,
    sample_prompt,
    sample_question,
    sample_question_of_two,
    sample_scene,
    sprite_mask,
    stated_relation,
    zone,
)

_SIDE = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}


@pytest.fixture(scope="module")
def train_examples():
    rng = np.random.default_rng(0)
    return [sample_example(rng) for _ in range(2000)]


@pytest.fixture(scope="module")
def held_out_examples():
    rng = np.random.default_rng(1)
    return [sample_example(rng, split="test", family=family) for family in EVALUATION_FAMILIES for _ in range(40)]


def _satisfies(scene, prompt):
    """The meaning of a prompt, checked on the scene itself."""
    wanted = Counter()
    for group in prompt.objects:
        wanted[group.color, group.shape] += group.count
    has_colors = prompt.objects[0].color is not None
    shown = Counter((o.color if has_colors else None, o.shape) for o in scene.objects)
    is_related = True
    if prompt.relation is not None:
        axis, sign = _SIDE[prompt.relation]
        a, b = (next(o for o in scene.objects if o.shape == group.shape) for group in prompt.objects)
        offsets = [a.center[i] - b.center[i] for i in (0, 1)]
        is_related = sign * offsets[axis] >= 16 and abs(offsets[axis]) > abs(offsets[1 - axis])
    return shown == wanted and is_related and prompt.background in (None, scene.background)


def test_equal_seeds_give_equal_examples():
    for split in ("train", "test"):
        draws, again = (
            [sample_example(np.random.default_rng(seed), split=split) for seed in range(20)] for _ in range(2)
        )
        assert draws == again
        assert len(set(draws)) == 20


def test_training_examples_break_no_held_out_rule(train_examples):
    assert {example.prompt.family for example in train_examples} == set(TRAINING_FAMILIES)
    for example in train_examples:
        objects = example.scene.objects
        assert is_training_scene(example.scene)
        assert not is_held_out_scene(example.scene)
        assert not {(o.color, o.shape) for o in objects} & HELD_OUT_COMBINATIONS
        for a in objects:
            assert all((a.shape, stated_relation(a, b), b.shape) not in HELD_OUT_RELATIONS for b in objects)
        assert not is_held_out_text(example.prompt.text)
        assert not is_held_out_text(example.long_caption)


def test_test_examples_are_held_out(held_out_examples):
    for example in held_out_examples:
        prompt = example.prompt
        assert is_held_out_scene(example.scene)
        assert prompt.is_held_out == prompt.family.startswith("unseen_")
        assert prompt.is_held_out or is_held_out_text(prompt.text)
        if prompt.family != "unseen_combination":
            assert not {(o.color, o.shape) for o in example.scene.objects} & HELD_OUT_COMBINATIONS
        assert has_held_out_relation(example.scene) == (prompt.family == "unseen_relation")


def test_held_out_relations_stand_with_their_inverses():
    assert {(b, INVERSE_RELATION[relation], a) for a, relation, b in HELD_OUT_RELATIONS} == HELD_OUT_RELATIONS


def test_scenes_satisfy_their_prompts(train_examples, held_out_examples):
    assert all(_satisfies(example.scene, example.prompt) for example in train_examples + held_out_examples)


def test_boxes_lie_on_the_lattice_with_a_gap(train_examples, held_out_examples):
    for example in train_examples + held_out_examples:
        boxes = [o.box for o in example.scene.objects]
        assert 1 <= len(boxes) <= 4
        for i, (left, top, right, bottom) in enumerate(boxes):
            assert all(edge % CELL == 0 and 0 <= edge <= 64 for edge in (left, top, right, bottom))
            for other in boxes[:i]:
                gap = max(other[0] - right, left - other[2], other[1] - bottom, top - other[3])
                assert gap >= CELL


def test_prompts_read_like_prompts(train_examples):
    texts = [example.prompt.text for example in train_examples]
    assert all(re.fullmatch(r"[a-z ,]+", text) and not re.search(r"\ba [aeiou]|\ban [^aeiou]", text) for text in texts)
    assert 0.25 < np.mean(["background" in text for text in texts]) < 0.42
    assert (
        0.4
        < np.mean([" of " not in text.replace(" left of ", " ").replace(" right of ", " ") for text in texts])
        < 0.6
    )
    assert {"a circle", "one circle"} & set(texts)


def test_key_ignores_the_order_of_objects():
    a, b = SceneObject("circle", "red", "small", 0, 0), SceneObject("square", "blue", "large", 4, 4)
    assert Scene((a, b), "white").key == Scene((b, a), "white").key
    assert Scene((a, b), "white").key != Scene((a, b), "black").key
    assert np.array_equal(render(Scene((a, b), "white")), render(Scene((b, a), "white")))


def test_render_paints_each_object_inside_its_box(train_examples):
    for example in train_examples[:200]:
        image = render(example.scene)
        assert image.shape == (64, 64, 3) and image.dtype == np.uint8
        outside = np.ones((64, 64), bool)
        for o in example.scene.objects:
            left, top, right, bottom = o.box
            assert tuple(image[int(o.center[1]), int(o.center[0])]) == COLORS[o.color]
            outside[top:bottom, left:right] = False
        assert (image[outside] == (255 if example.scene.background == "white" else 0)).all()


def test_render_does_not_share_memory(train_examples):
    scene = train_examples[0].scene
    first = render(scene)
    first[:] = 7
    assert not np.array_equal(first, render(scene))
    with pytest.raises(ValueError, match="read-only"):
        sprite_mask("circle", "small")[0, 0] = 1


@pytest.mark.parametrize(
    ("a", "b", "relation"),
    [
        ((0, 0), (0, 3), "left of"),
        ((0, 5), (2, 0), "right of"),
        ((0, 0), (4, 2), "above"),
        ((5, 1), (0, 0), "below"),
        ((0, 0), (3, 3), None),
    ],
)
def test_stated_relation_follows_the_dominant_axis(a, b, relation):
    first, second = SceneObject("circle", "red", "small", *a), SceneObject("square", "red", "small", *b)
    assert stated_relation(first, second) == relation
    assert stated_relation(second, first) == INVERSE_RELATION.get(relation)


def test_long_captions_are_true(train_examples):
    for example in train_examples:
        text = example.long_caption
        place = "(?:top|bottom)(?: left| right)?|left|right|center"
        listed = re.findall(rf"(small|large) (\w+) (\w+) at the ({place})", text)
        assert Counter(listed) == Counter((o.size, o.color, o.shape, zone(o)) for o in example.scene.objects)
        assert (f"{example.scene.background} background" in text) != (
            f"background is {example.scene.background}" in text
        )


def test_zone_names_the_place():
    assert zone(SceneObject("circle", "red", "small", 0, 0)) == "top left"
    assert zone(SceneObject("circle", "red", "small", 3, 3)) == "center"
    assert zone(SceneObject("circle", "red", "small", 6, 3)) == "bottom"
    assert zone(SceneObject("circle", "red", "large", 2, 5)) == "right"


def test_describe_counts_equal_objects(train_examples):
    scene = Scene(
        (SceneObject("cross", "orange", "small", 0, 0), SceneObject("cross", "orange", "large", 4, 4)),
        "black",
    )
    assert describe(scene, np.random.default_rng(0), split="test") == "two orange crosses on a black background"
    rng = np.random.default_rng(2)
    for example in train_examples:
        text = describe(example.scene, rng)
        assert not is_held_out_text(text)
        counted = Counter()
        for number, color, name in re.findall(rf"(an?|{'|'.join(NUMBER_WORDS)}) ({'|'.join(COLORS)}) (\w+)", text):
            shape = next(shape for shape in SHAPES if name in (shape, shape + "s", shape + "es"))
            counted[color, shape] = NUMBER_WORDS.index(number) if number in NUMBER_WORDS else 1
        assert counted == Counter((o.color, o.shape) for o in example.scene.objects)


def test_a_description_is_read_as_it_was_meant(train_examples, held_out_examples):
    rng = np.random.default_rng(6)
    for split, examples in (("train", train_examples[:300]), ("test", held_out_examples)):
        for example in examples:
            meant = Counter((o.color, o.shape) for o in example.scene.objects)
            assert parse_description(describe(example.scene, rng, split=split)) == (meant, example.scene.background)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red circle",
        "a red circle on a green background",
        "a red circle, on a white background",
        "two red circle on a white background",
        "a red circles on a white background",
        "no red circles on a white background",
        "a small red circle on a white background",
        "a red blue on a white background",
        "some red circles on a white background",
        "a red circle on a white background and more",
    ],
)
def test_what_is_no_description_is_not_read(text):
    assert parse_description(text) is None


def test_the_cell_of_an_object_is_a_row_and_a_column():
    cells = {cell_words(SceneObject("circle", "red", "small", row, col)) for row in range(7) for col in range(7)}
    assert len(cells) == 49
    assert cell_words(SceneObject("circle", "red", "small", 0, 0)) == "0A"
    assert cell_words(SceneObject("circle", "red", "large", 5, 2)) == "5C"


def _answer(scene, text):
    """Answer a question from the scene by parsing its words, independently of how it was asked."""
    colors, shapes = "|".join(COLORS), "|".join(SHAPES)

    def named(words):
        return [o for o in scene.objects if set(words.split()) <= {o.color, o.shape}]

    if text == "what color is the background?":
        return scene.background
    if match := re.fullmatch(rf"is there an? ((?:(?:{colors}) )?(?:{shapes}))\?", text):
        return "yes" if named(match[1]) else "no"
    if match := re.fullmatch(rf"what color is the ({shapes})\?", text):
        (o,) = named(match[1])
        return o.color
    if match := re.fullmatch(rf"what shape is the ({colors}) object\?", text):
        (o,) = named(match[1])
        return o.shape
    if match := re.fullmatch(rf"how many (?:({colors}) )?(objects|(?:{shapes})(?:es|s)) are there\?", text):
        shape = next((shape for shape in SHAPES if match[2].startswith(shape)), "")
        return NUMBER_WORDS[len(named(f"{match[1] or ''} {shape}"))]
    match = re.fullmatch(r"is the ([a-z ]+?) (left of|right of|above|below) the ([a-z ]+)\?", text)
    (a,), (b,) = named(match[1]), named(match[3])
    axis, sign = _SIDE[match[2]]
    return "yes" if sign * (a.center[axis] - b.center[axis]) > 0 else "no"


@pytest.mark.parametrize("kind", QUESTION_KINDS)
def test_answers_are_true(kind, train_examples, held_out_examples):
    rng = np.random.default_rng(3)
    scenes = [e.scene for e in train_examples + held_out_examples if kind in question_kinds(e.scene)]
    questions = [sample_question(scene, rng, kind) for scene in scenes]
    assert len(scenes) > 500
    assert all(
        question.answer == _answer(scene, question.text) for scene, question in zip(scenes, questions, strict=True)
    )
    if kind in ("existence", "position"):
        assert 0.45 < np.mean([question.answer == "yes" for question in questions]) < 0.55
    if kind == "count":
        assert {question.answer for question in questions} == set(NUMBER_WORDS)


def test_comparisons_have_one_true_answer(train_examples):
    rng = np.random.default_rng(7)
    scenes = [example.scene for example in train_examples]
    answers = {"more": Counter(), "shows": Counter(), "background": Counter()}
    for first, second in zip(scenes[:500], scenes[500:1000], strict=True):
        question = sample_comparison(first, second, rng)
        assert question.kind == COMPARISON
        if "background" in question.text:
            kind, expected = "background", "yes" if first.background == second.background else "no"
        elif match := re.fullmatch(r"which image has (more|fewer) objects\?", question.text):
            counts = len(first.objects), len(second.objects)
            assert counts[0] != counts[1]
            kind, expected = "more", "first" if (counts[0] > counts[1]) == (match[1] == "more") else "second"
        else:
            named = re.fullmatch(r"which image shows an? (.+)\?", question.text)[1]
            has = [any(f"{o.color} {o.shape}" == named for o in scene.objects) for scene in (first, second)]
            assert has[0] != has[1]
            kind, expected = "shows", "first" if has[0] else "second"
        assert question.answer == expected
        answers[kind][expected] += 1
    for counts in answers.values():  # no kind is answered without a look
        assert len(counts) == 2 and min(counts.values()) > 0.35 * counts.total()


def test_equal_scenes_are_compared_by_what_they_share(train_examples):
    rng = np.random.default_rng(8)
    scene = train_examples[0].scene
    questions = {sample_comparison(scene, scene, rng) for _ in range(20)}
    assert {(question.text, question.answer) for question in questions} == {
        ("do both images have the same background?", "yes")
    }


def test_a_question_about_one_of_two_names_it_and_its_answer_is_true(train_examples):
    rng = np.random.default_rng(9)
    named = Counter()
    for first, second in zip(train_examples[:200], train_examples[200:400], strict=True):
        question = sample_question_of_two(first.scene, second.scene, rng)
        text, name = re.fullmatch(r"(.+) in the (first|second) image\?", question.text).groups()
        scene = first.scene if name == "first" else second.scene
        assert question.answer == _answer(scene, f"{text}?")
        named[name] += 1
    assert min(named.values()) > 60


def test_training_questions_never_mention_held_out_combinations(train_examples):
    rng = np.random.default_rng(4)
    phrases = [f"{color} {shape}" for color, shape in HELD_OUT_COMBINATIONS]
    for example in train_examples:
        text = sample_question(example.scene, rng).text
        assert not any(phrase in text for phrase in phrases)


def test_no_question_denies_a_held_out_relation(train_examples):
    rng = np.random.default_rng(5)
    for example in train_examples:
        if "position" in question_kinds(example.scene):
            text = sample_question(example.scene, rng, "position").text
            for a, relation, b in HELD_OUT_RELATIONS:
                assert not re.search(rf"{a} {relation} the (\w+ )?{b}\?", text)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_belongs_to_its_splits_only(family):
    rng = np.random.default_rng(0)
    for split, families in (("train", TRAINING_FAMILIES), ("test", EVALUATION_FAMILIES)):
        if family in families:
            assert sample_prompt(rng, family, split=split).family == family
        else:
            with pytest.raises(ValueError, match=rf"Family '{family}' has no '{split}' split. Available in it: "):
                sample_prompt(rng, family, split=split)


def test_four_large_objects_never_stall_the_sampler():
    prompt = Prompt("four squares", "counting", (ObjectGroup("square", None, 4),))
    rng = np.random.default_rng(0)
    scenes = [sample_scene(prompt, rng, split="train") for _ in range(300)]
    assert {tuple(sorted(o.size for o in scene.objects)) for scene in scenes} >= {
        ("small",) * 4,
        ("large",) * 4,
    }


def test_errors_name_the_way_out():
    rng = np.random.default_rng(0)
    scene = Scene((SceneObject("circle", "red", "small", 0, 0), SceneObject("circle", "red", "small", 5, 5)), "white")
    with pytest.raises(ValueError, match=r"Unknown family 'color'. Did you mean 'colors'\? Available: single_object"):
        sample_prompt(rng, "color", split="train")
    with pytest.raises(ValueError, match=r"Unknown split 'tran'. Did you mean 'train'\? Available: train, test"):
        sample_example(rng, split="tran")
    with pytest.raises(ValueError, match="Unknown split 'val'"):
        long_caption(scene, rng, "val")
    with pytest.raises(ValueError, match=r"'position' question has no single answer .* Available: existence, count"):
        sample_question(scene, rng, "position")
    with pytest.raises(ValueError, match=r"Unknown question kind 'colour'. Did you mean 'color'"):
        sample_question(scene, rng, "colour")
    unseen = sample_prompt(rng, "unseen_combination", split="test")
    with pytest.raises(ValueError, match=r"is held out from training. Pass split='test'"):
        sample_scene(unseen, rng, split="train")
    with pytest.raises(ValueError, match="A scene has 1 to 4 objects, 'five circles' asks for 5"):
        sample_scene(Prompt("five circles", "counting", (ObjectGroup("circle", None, 5),)), rng, split="train")
