"""The tiny world keeps its promises: same seed, same data; held-out things stay out; what is said is true."""

import re
from collections import Counter

import numpy as np
import pytest
from tests.shapes.reading import SIDE, answer, answer_of_two

from blip3o_hf.shapes import (
    CELL,
    COLORS,
    COMPARISON,
    DETAIL_FAMILIES,
    EVALUATION_FAMILIES,
    FAMILIES,
    GENEVAL_FAMILIES,
    HELD_OUT_COMBINATIONS,
    HELD_OUT_RELATIONS,
    INVERSE_RELATION,
    NUMBER_WORDS,
    PLACE_KINDS,
    QUESTION_KINDS,
    SHAPES,
    SIZES,
    TEST_FAMILIES,
    TRAINING_FAMILIES,
    ZONES,
    ObjectGroup,
    Prompt,
    Scene,
    SceneObject,
    cell_code,
    cell_words,
    describe,
    has_held_out_relation,
    in_reading_order,
    is_held_out_scene,
    is_held_out_text,
    is_training_scene,
    long_caption,
    object_words,
    parse_description,
    parse_plan,
    patch_words,
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
    write_plan,
    zone,
)


@pytest.fixture(scope="module")
def train_examples():
    rng = np.random.default_rng(0)
    return [sample_example(rng) for _ in range(2000)]


@pytest.fixture(scope="module")
def held_out_examples():
    rng = np.random.default_rng(1)
    return [sample_example(rng, split="test", family=family) for family in TEST_FAMILIES for _ in range(40)]


def _satisfies(scene, prompt):
    """The meaning of a prompt, checked on the scene itself."""

    def fits(o, group):
        said = (group.shape, group.color, group.size, group.place)
        return all(word in (None, own) for word, own in zip(said, (o.shape, o.color, o.size, zone(o)), strict=True))

    counts = [sum(fits(o, group) for o in scene.objects) for group in prompt.objects]
    is_shown = counts == [group.count for group in prompt.objects] and sum(counts) == len(scene.objects)
    is_related = True
    if prompt.relation is not None:
        axis, sign = SIDE[prompt.relation]
        a, b = (next(o for o in scene.objects if o.shape == group.shape) for group in prompt.objects)
        offsets = [a.center[i] - b.center[i] for i in (0, 1)]
        is_related = sign * offsets[axis] >= 16 and abs(offsets[axis]) > abs(offsets[1 - axis])
    return is_shown and is_related and prompt.background in (None, scene.background)


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
    objects = [SceneObject("circle", "red", "small", row, col) for row in range(7) for col in range(7)]
    assert len(set(map(cell_words, objects))) == len(set(map(cell_code, objects))) == 49
    assert cell_words(SceneObject("circle", "red", "small", 0, 4)) == "row 1 column 5"
    assert cell_words(SceneObject("circle", "red", "large", 5, 2)) == "row 6 column 3"
    assert cell_code(SceneObject("circle", "red", "small", 0, 4)) == "1 e"
    assert cell_code(SceneObject("circle", "red", "large", 5, 2)) == "6 c"


def test_a_plan_is_read_as_it_was_written(train_examples, held_out_examples):
    for example in train_examples[:300] + held_out_examples:
        for scene in (example.scene, example.ordered_scene, Scene(example.scene.objects[::-1], "black")):
            plan = write_plan(scene)
            assert parse_plan(plan) == parse_plan(f" {plan.capitalize()}.") == scene


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a small red circle at row 1 column 5",
        "a small red circle at row 1 column 5 on a green background",
        "a small red circle on a white background",
        "a red circle at row 1 column 5 on a white background",
        "two small red circles at row 1 column 5 on a white background",
        "a small red circle at the top left on a white background",
        "a small red circle at row 0 column 5 on a white background",
        "a small red circle at row 1 column 8 on a white background",
        "a large red circle at row 1 column 7 on a white background",
        "a tiny red circle at row 1 column 5 on a white background",
        "a small pink circle at row 1 column 5 on a white background",
        "a small red star at row 1 column 5 on a white background",
        "a small red circle at row 1 column 5 and more on a white background",
    ],
)
def test_what_is_no_plan_is_not_read(text):
    assert parse_plan(text) is None


def test_each_cell_of_the_lattice_has_a_word_about_what_is_there(train_examples):
    rng, found = np.random.default_rng(15), set()
    for example in train_examples[:60]:
        image, background = render(example.scene), example.scene.background
        words = patch_words(example.scene, rng)
        assert len(words) == 64
        for place, word in enumerate(words):
            row, col = divmod(place, 8)
            here = [o for o in example.scene.objects if 0 <= row - o.row < o.pixels // CELL]
            here = [o for o in here if 0 <= col - o.col < o.pixels // CELL]
            if here:
                (o,) = here
                known = {"size": o.size, "color": o.color, "shape": o.shape}
                known |= dict(zip(("row", "column"), cell_code(o).split(), strict=True))
                found.add(next(name for name, own in known.items() if own == word))
            else:
                assert word == background
                patch = image[row * CELL : (row + 1) * CELL, col * CELL : (col + 1) * CELL]
                assert (patch == (255 if background == "white" else 0)).all()
    assert found == {"size", "color", "shape", "row", "column"}


def test_the_words_about_objects_tell_all_but_the_cell(train_examples):
    for example in train_examples[:100]:
        for o in example.scene.objects:
            alone = Scene((o,), example.scene.background)
            assert object_words(alone) == [[o.size, o.color, o.shape, *zone(o).split(), example.scene.background]]
        listed = Counter(tuple(words) for words in object_words(example.scene))
        single = [object_words(Scene((o,), example.scene.background))[0] for o in example.scene.objects]
        assert listed == Counter(map(tuple, single))


def test_an_ordered_scene_keeps_the_order_of_its_prompt(train_examples):
    for example in train_examples[:500]:
        scene, first = example.ordered_scene, 0
        assert scene.key == example.scene.key
        for group in example.prompt.objects:
            objects = scene.objects[first : first + group.count]
            assert in_reading_order(objects) == objects and all(map(group.holds, objects))
            first += group.count


def test_a_description_in_order_names_things_as_the_scene_does(train_examples, held_out_examples):
    rng = np.random.default_rng(16)
    for split, examples in (("train", train_examples[:200]), ("test", held_out_examples[:200])):
        for example in examples:
            text = describe(example.scene, rng, split=split, in_order=True)
            first = list(dict.fromkeys(f"{o.color} {o.shape}" for o in example.scene.objects))
            places = [text.index(name) for name in first]
            assert parse_description(text) == parse_description(describe(example.scene, rng, split=split))
            if split == "test":
                assert places == sorted(places)
            else:  # another order, or an opener, where the text is a held-out one
                plain = describe(example.scene, rng, split="test", in_order=True)
                assert (text == plain) != is_held_out_text(plain)


def test_the_benchmark_asks_for_no_size_and_no_place(held_out_examples):
    asked = [example.prompt for example in held_out_examples if example.prompt.family in EVALUATION_FAMILIES]
    assert len(asked) == 40 * len(EVALUATION_FAMILIES)
    for prompt in asked:
        assert all(group.size is None and group.place is None for group in prompt.objects)
        assert not re.search(rf"\b({'|'.join(SIZES)}|top|bottom|center|at the)\b", prompt.text)
    assert not set(DETAIL_FAMILIES) & set(EVALUATION_FAMILIES)
    rng = np.random.default_rng(17)
    assert {sample_example(rng, split="test").prompt.family for _ in range(100)} == set(GENEVAL_FAMILIES)


@pytest.mark.parametrize("split", ["train", "test"])
def test_details_are_asked_for_in_their_families_and_said(split):
    rng = np.random.default_rng(18)
    for family in DETAIL_FAMILIES:
        examples = [sample_example(rng, split=split, family=family) for _ in range(80)]
        prompts = [example.prompt for example in examples]
        for prompt in prompts:
            for group in prompt.objects:
                name = " ".join(filter(None, (group.size, group.color, group.shape)))
                assert (f"{name} at the {group.place}" if family == "places" else name) in prompt.text
        sizes = {group.size for prompt in prompts for group in prompt.objects}
        places = {group.place for prompt in prompts for group in prompt.objects}
        assert places == (set(ZONES) if family == "places" else {None})
        assert sizes == {"small", "large", None}
        if family == "sizes":
            assert all(any(group.size for group in prompt.objects) for prompt in prompts)
            assert any(
                len({g.size for g in p.objects}) == 2 and len({g.shape for g in p.objects}) == 1 for p in prompts
            )
        assert all(is_held_out_text(prompt.text) == (split == "test") for prompt in prompts)
        assert all(_satisfies(example.scene, example.prompt) for example in examples)


@pytest.mark.parametrize("kind", (*QUESTION_KINDS, *PLACE_KINDS))
def test_answers_are_true(kind, train_examples, held_out_examples):
    rng = np.random.default_rng(3)
    scenes = [e.scene for e in train_examples + held_out_examples if kind in question_kinds(e.scene, (kind,))]
    questions = [sample_question(scene, rng, kind) for scene in scenes]
    assert len(scenes) > 500
    assert all(
        question.answer == answer(scene, question.text) for scene, question in zip(scenes, questions, strict=True)
    )
    assert {question.kind for question in questions} == {kind}
    if kind == "existence":
        assert 0.45 < np.mean([question.answer == "yes" for question in questions]) < 0.55
    if kind == "position":
        are_true = [question.answer.endswith(f"{dict(question.words)['relation']} it") for question in questions]
        assert 0.45 < np.mean(are_true) < 0.55
    if kind == "count":
        assert {question.answer for question in questions} == set(NUMBER_WORDS)
    if kind == "size":
        assert {question.answer for question in questions} == {"small", "large", "yes", "no"}
    if kind == "zone":
        assert {question.answer for question in questions} == {f"at the {name}" for name in ZONES}


def test_the_place_of_an_object_is_asked_by_name_alone(train_examples):
    rng = np.random.default_rng(14)
    for example in train_examples[:300]:
        counts = Counter((o.color, o.shape) for o in example.scene.objects)
        kinds = question_kinds(example.scene, (*QUESTION_KINDS, *PLACE_KINDS))
        assert question_kinds(example.scene) == tuple(kind for kind in kinds if kind in QUESTION_KINDS)
        is_any_alone = 1 in counts.values()
        assert set(kinds) & {"size", *PLACE_KINDS} == ({"size", *PLACE_KINDS} if is_any_alone else set())
        assert sample_question(example.scene, rng).kind in QUESTION_KINDS


def test_comparisons_have_one_true_answer(train_examples):
    rng = np.random.default_rng(7)
    scenes = [example.scene for example in train_examples]
    answers = {"more": Counter(), "shows": Counter(), "background": Counter()}
    for first, second in zip(scenes[:500], scenes[500:1000], strict=True):
        question = sample_comparison(first, second, rng)
        assert question.kind == COMPARISON
        assert question.answer == answer_of_two(first, second, question.text)
        (kind,) = (kind for kind in answers if f"{kind} " in question.text.replace("?", " ").replace("fewer", "more"))
        answers[kind][question.answer] += 1
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
        assert question.answer == answer_of_two(first.scene, second.scene, question.text)
        named[re.fullmatch(r".+ in the (first|second) image\?", question.text)[1]] += 1
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
        if "position" in question_kinds(example.scene, ("position",)):
            text = sample_question(example.scene, rng, "position").text
            for a, relation, b in HELD_OUT_RELATIONS:
                assert not re.search(rf"{a} {relation} the (\w+ )?{b}\?", text)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_belongs_to_its_splits_only(family):
    rng = np.random.default_rng(0)
    for split, families in (("train", TRAINING_FAMILIES), ("test", TEST_FAMILIES)):
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
    for kind in ("position", "size", "cell"):
        with pytest.raises(ValueError, match=rf"'{kind}' question has no single answer .* Available: existence"):
            sample_question(scene, rng, kind)
    with pytest.raises(ValueError, match=r"Unknown question kind 'colour'. Did you mean 'color'"):
        sample_question(scene, rng, "colour")
    unseen = sample_prompt(rng, "unseen_combination", split="test")
    with pytest.raises(ValueError, match=r"is held out from training. Pass split='test'"):
        sample_scene(unseen, rng, split="train")
    with pytest.raises(ValueError, match="A scene has 1 to 4 objects, 'five circles' asks for 5"):
        sample_scene(Prompt("five circles", "counting", (ObjectGroup("circle", None, 5),)), rng, split="train")
