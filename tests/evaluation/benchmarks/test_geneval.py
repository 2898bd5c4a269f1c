"""GenEval's folder is what its scorer reads, damage is found, and scores say whose detector they are of."""

import json

import pytest
from PIL import Image

from blip3o_hf.evaluation.benchmarks.agreement import agreement_with_people
from blip3o_hf.evaluation.benchmarks.geneval import GenEvalBenchmark, summary
from blip3o_hf.evaluation.benchmarks.geneval_rules import TAGS, Detection, Judgement

ROWS = [
    {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a photo of a cat"},
    {
        "tag": "counting",
        "include": [{"class": "dog", "count": 2}],
        "exclude": [{"class": "dog", "count": 3}],
        "prompt": "a photo of two dogs",
    },
    {"tag": "colors", "include": [{"class": "cup", "count": 1, "color": "red"}], "prompt": "a photo of a red cup"},
]


class SeesAll:
    name = "tiny"

    def __call__(self, image, class_names):
        return {name: [Detection((0, 0, 5, 5), 0.95)] for name in class_names}


@pytest.fixture
def benchmark(write_lines):
    return GenEvalBenchmark(write_lines(ROWS))


def test_layout_is_that_of_the_scorer(benchmark, laid_out, files, draw):
    folder = laid_out(benchmark)
    assert files(folder) == sorted(
        name
        for item in ("00000", "00001", "00002")
        for name in (f"{item}/metadata.jsonl", *(f"{item}/samples/{n:04d}.png" for n in range(4)))
    )
    for number, row in enumerate(ROWS):
        assert (folder / f"{number:05d}" / "metadata.jsonl").read_text() == json.dumps(row)
    pictures = draw(benchmark)
    drawn = Image.open(folder / "00001" / "samples" / "0003.png")
    assert drawn.tobytes() == pictures.open(benchmark.items[1], 3).tobytes()


def damage_missing(folder):
    (folder / "00001" / "samples" / "0002.png").unlink()


def damage_metadata(folder):
    (folder / "00000" / "metadata.jsonl").write_text(json.dumps({**ROWS[0], "seed": 1}))


def damage_two_lines(folder):
    (folder / "00000" / "metadata.jsonl").write_text("{}\n{}\n")


def damage_no_metadata(folder):
    (folder / "00002" / "metadata.jsonl").unlink()


def damage_extra(folder):
    Image.new("RGB", (16, 16)).save(folder / "00000" / "samples" / "0004.png")


def damage_name(folder):
    Image.new("RGB", (16, 16)).save(folder / "00000" / "samples" / "a.png")


def damage_duplicate(folder):
    (folder / "0").mkdir()


def damage_folder(folder):
    (folder / "00009").mkdir()


def damage_picture(folder):
    path = folder / "00000" / "samples" / "0000.png"
    path.write_bytes(path.read_bytes()[:60])


def damage_size(folder):
    Image.new("RGB", (8, 16)).save(folder / "00002" / "samples" / "0001.png")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (damage_missing, "00001/samples/0002.png is missing."),
        (damage_metadata, "00000/metadata.jsonl is not line 0 of the prompt file"),
        (damage_two_lines, "00000/metadata.jsonl must hold one JSON"),
        (damage_no_metadata, "00002/metadata.jsonl is missing."),
        (damage_extra, "00000/samples/0004.png is one too many."),
        (damage_name, "00000/samples/a.png is not read"),
        (damage_duplicate, "0 is a duplicate of 00000."),
        (damage_folder, "00009 is the folder of no prompt."),
        (damage_picture, "00000/samples/0000.png is damaged"),
        (damage_size, "00002/samples/0001.png has 8 x 16 pixels, most have 16 x 16."),
    ],
)
def test_damage_is_named(benchmark, laid_out, damage, sentence):
    folder = laid_out(benchmark)
    damage(folder)
    (problem,) = benchmark.problems(folder)
    assert problem.startswith(sentence)


def test_scores_name_the_detector(benchmark, draw):
    scores = benchmark.score(
        draw(benchmark), detector=SeesAll(), colors=lambda image, found, name: ["red"] * len(found)
    )
    assert {score.name: score.figure.value for score in scores} == {
        "GenEval rules, detector tiny: single_object": 1,
        "GenEval rules, detector tiny: counting": 0,
        "GenEval rules, detector tiny: colors": 1,
        "GenEval rules, detector tiny: any of the pictures": 2 / 3,
    }


def test_no_detector_no_score(benchmark, draw):
    assert benchmark.score(draw(benchmark)) == []


def test_colours_need_a_classifier(benchmark, draw):
    with pytest.raises(ValueError, match=r"need a colour classifier. Got none. Give `colors`"):
        benchmark.score(draw(benchmark), detector=SeesAll())


def test_no_mean_over_fewer_pictures(benchmark, draw):
    pictures = draw(benchmark)
    pictures.path(benchmark.items[2], 1).unlink()
    with pytest.raises(ValueError, match=r"All 12 pictures must be there. 1 are missing, the first is .*00002/1.png"):
        benchmark.score(pictures, detector=SeesAll())


def test_overall_is_the_plain_mean_of_six_tags(write_lines):
    rows = [{**ROWS[0], "tag": tag} for tag in (*TAGS, "counting", "counting")]
    items = GenEvalBenchmark(write_lines(rows)).items
    right = {item.id: [Judgement(item.row["tag"] == "counting")] * 2 for item in items}
    scores = {score.name.split(": ")[1]: score for score in summary(items, right, "tiny")}
    assert scores["overall"].figure.value == pytest.approx(1 / 6)
    assert scores["counting"].figure.value == 1 and scores["counting"].total == 3
    assert scores["any of the pictures"].figure.value == pytest.approx(3 / 8)
    right[items[0].id] = [Judgement(True), Judgement(False)]
    scores = {score.name.split(": ")[1]: score for score in summary(items, right, "tiny")}
    assert scores[items[0].row["tag"]].figure.value == 0.5
    assert scores["any of the pictures"].figure.value == pytest.approx(4 / 8)


@pytest.mark.parametrize(
    "row",
    [
        {**ROWS[0], "tag": "things"},
        {**ROWS[0], "include": []},
        {**ROWS[0], "include": [{"class": "cat"}]},
        {**ROWS[0], "include": [{"class": "cat", "count": 1, "position": ["right of", 0]}]},
        {**ROWS[0], "include": [{"class": "cat", "count": 1, "color": "cyan"}]},
        {"tag": "counting", "include": [{"class": "cat", "count": True}], "prompt": "a"},
    ],
)
def test_a_line_that_is_none_is_refused(write_lines, row):
    with pytest.raises(ValueError, match=r"prompt 1 has .*Take the file `evaluation_metadata.jsonl`"):
        GenEvalBenchmark(write_lines([ROWS[0], row]))


ANNOTATIONS = "picture,worker,correct\na,1,True\na,2,True\na,3,False\nb,1,False\nc,1,true\nd,1,no\ne,1,yes\ne,2,no\n"


def test_agreement_counts_majorities(tmp_path):
    path = tmp_path / "people.csv"
    path.write_text(ANNOTATIONS)
    verdicts = {"a": True, "b": False, "c": False, "d": True, "e": True}
    agreement = agreement_with_people(verdicts, path, "picture", "correct")
    assert (agreement.both_right, agreement.only_rules, agreement.only_people, agreement.both_wrong) == (1, 1, 1, 1)
    assert agreement.ties == 1
    assert agreement.rate.value == 0.5 and agreement.kappa == 0
    same = agreement_with_people({**verdicts, "c": True, "d": False}, path, "picture", "correct")
    assert same.rate.value == 1 and same.kappa == 1


@pytest.mark.parametrize(
    ("content", "verdicts", "text"),
    [
        (ANNOTATIONS, {"a": True}, r"4 of 5 have none: b, c, d. Judge them, too"),
        ("picture,worker\na,1\n", {"a": True}, r"Unknown column of .* 'correct'. Available: picture, worker"),
        ("picture,correct\na,maybe\n", {"a": True}, r"line 2 has 'maybe'"),
        ("picture,correct\na\n", {"a": True}, r"line 2 has None"),
    ],
)
def test_annotations_that_are_none_are_refused(tmp_path, content, verdicts, text):
    path = tmp_path / "people.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=text):
        agreement_with_people(verdicts, path, "picture", "correct")
