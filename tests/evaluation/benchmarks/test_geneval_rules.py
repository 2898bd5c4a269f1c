"""Each of GenEval's rules passes, fails, and decides at its border as GenEval's own code does."""

import pytest

from blip3o_hf.evaluation.benchmarks.geneval_rules import Detection, judge, kept, relations


def at(x, y, width=10.0, height=10.0, score=0.95):
    """A detection with its centre at `(x, y)`."""
    return Detection((x - width / 2, y - height / 2, x + width / 2, y + height / 2), score)


def no_colors(detections, name):
    raise AssertionError("no colour is asked for")


def row(tag, *include, **rest):
    return {"tag": tag, "prompt": "an example", "include": list(include), **rest}


def one(name, count=1, **rest):
    return {"class": name, "count": count, **rest}


# What counts


@pytest.mark.parametrize(
    ("tag", "score", "counts"),
    [
        ("single_object", 0.31, True),
        ("single_object", 0.3, False),
        ("single_object", 0.29, False),
        ("counting", 0.91, True),
        ("counting", 0.9, False),
        ("counting", 0.31, False),
    ],
)
def test_a_box_counts_above_the_threshold_of_its_tag(tag, score, counts):
    assert bool(kept([at(0, 0, score=score)], tag)) == counts
    assert judge(row(tag, one("cat")), {"cat": [at(0, 0, score=score)]}, no_colors).is_correct == counts


def test_the_surest_sixteen_of_a_class_count():
    boxes = [at(index, 0, score=0.91 + index / 1000) for index in range(20)]
    assert [box.score for box in kept(boxes, "counting")] == sorted((box.score for box in boxes), reverse=True)[:16]


# Numbers


@pytest.mark.parametrize(("found", "passes"), [(0, False), (1, False), (2, True), (3, False), (17, False)])
def test_counting_wants_the_exact_number_by_include_and_exclude(found, passes):
    counting = row("counting", one("cat", 2), exclude=[one("cat", 3)])
    judgement = judge(counting, {"cat": [at(20 * index, 0) for index in range(found)]}, no_colors)
    assert judgement.is_correct == passes
    assert bool(judgement.reasons) != passes


def test_more_than_asked_for_is_fine_without_exclude():
    assert judge(
        row("two_object", one("cat"), one("dog")), {"cat": [at(0, 0)] * 3, "dog": [at(9, 9)]}, no_colors
    ).is_correct


def test_exclude_alone_fails_a_picture():
    judgement = judge(
        row("counting", one("cat"), exclude=[one("dog")]), {"cat": [at(0, 0)], "dog": [at(5, 5)]}, no_colors
    )
    assert judgement.reasons == ("expected fewer than 1 dog, found 1",)


def test_a_class_that_was_not_found_is_missing():
    judgement = judge(row("two_object", one("cat"), one("dog")), {"cat": [at(0, 0)]}, no_colors)
    assert judgement.reasons == ("expected 1 dog, found 0",)


# Colours


def test_colour_looks_at_the_surest_boxes_alone():
    wanted = row("colors", one("cat", color="red"))
    boxes = [at(0, 0, score=0.5), at(50, 0, score=0.8)]
    named = {0.5: "red", 0.8: "blue"}

    def colors(detections, name):
        assert name == "cat"
        return [named[detection.score] for detection in detections]

    judgement = judge(wanted, {"cat": boxes}, colors)
    assert judgement.reasons == ("expected 1 red cat, found blue",)
    named[0.8] = "red"
    assert judge(wanted, {"cat": boxes}, colors).is_correct


@pytest.mark.parametrize(
    ("hits", "passes"), [(["red", "red"], True), (["red", "blue"], False), (["blue", "blue"], False)]
)
def test_as_many_as_asked_for_must_have_the_colour(hits, passes):
    wanted = row("color_attr", one("cat", 2, color="red"))
    assert judge(wanted, {"cat": [at(0, 0), at(30, 0)]}, lambda *_: hits).is_correct == passes


def test_colour_is_not_asked_where_objects_are_missing():
    wanted = row("color_attr", one("cat", 2, color="red"))
    assert not judge(wanted, {"cat": [at(0, 0)]}, no_colors).is_correct


# Places


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (-100, 0, {"left of"}),
        (100, 0, {"right of"}),
        (0, -100, {"above"}),
        (0, 100, {"below"}),
        (100, 100, {"right of", "below"}),
        (0, 0, set()),
        (2, 0, set()),  # 0.1 of both widths together: nothing is left
        (4, 0, set()),  # (4 - 2) / 4 is 0.5, and that is not more than 0.5
        (4.1, 0, {"right of"}),
        (-4.1, 0, {"left of"}),
        (0, 4.1, {"below"}),
        (100, 60, {"right of"}),  # 58 / 117 is below 0.5
        (100, 65, {"right of", "below"}),  # 63 / 119 is above
    ],
)
def test_relations_of_two_boxes(x, y, expected):
    assert relations(at(x, y), at(0, 0)) == expected


def test_relations_are_inverse():
    inverse = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    for x, y in ((30, 4), (-8, 50), (3, 3), (70, 70), (-6, -1)):
        assert relations(at(x, y), at(0, 0)) == {inverse[name] for name in relations(at(0, 0), at(x, y))}


def test_the_margin_grows_with_the_objects():
    assert relations(at(20, 0, width=10), at(0, 0, width=10)) == {"right of"}
    assert relations(at(20, 0, width=60), at(0, 0, width=60)) == set()


POSITION = row("position", one("cat"), one("dog", position=["right of", 0]))


@pytest.mark.parametrize(("x", "passes"), [(50, True), (4, False), (-50, False)])
def test_position_holds_between_the_two(x, passes):
    assert judge(POSITION, {"cat": [at(0, 0)], "dog": [at(x, 0)]}, no_colors).is_correct == passes


def test_position_looks_at_the_surest_alone():
    dogs = [at(50, 0, score=0.5), at(-50, 0, score=0.9)]
    assert not judge(POSITION, {"cat": [at(0, 0)], "dog": dogs}, no_colors).is_correct


def test_every_pair_must_stand_as_asked():
    wanted = row("position", one("cat", 2), one("dog", 2, position=["right of", 0]))
    cats = [at(0, 0), at(40, 0)]
    assert judge(wanted, {"cat": cats, "dog": [at(80, 0), at(90, 0)]}, no_colors).is_correct
    assert not judge(wanted, {"cat": cats, "dog": [at(80, 0), at(20, 0)]}, no_colors).is_correct


def test_no_target_no_position():
    judgement = judge(POSITION, {"dog": [at(50, 0)]}, no_colors)
    assert judgement.reasons == ("expected 1 cat, found 0", "nothing for dog to be right of")


def test_a_target_of_the_wrong_colour_is_none():
    wanted = row("position", one("cat", color="red"), one("dog", position=["right of", 0]))
    found = {"cat": [at(0, 0)], "dog": [at(50, 0)]}
    assert judge(wanted, found, lambda *_: ["red"]).is_correct
    judgement = judge(wanted, found, lambda *_: ["blue"])
    assert judgement.reasons == ("expected 1 red cat, found blue", "nothing for dog to be right of")


def test_colour_is_judged_before_place():
    wanted = row("position", one("cat"), one("dog", color="red", position=["right of", 0]))
    judgement = judge(wanted, {"cat": [at(0, 0)], "dog": [at(-50, 0)]}, lambda *_: ["blue"])
    assert judgement.reasons == ("expected 1 red dog, found blue",)
