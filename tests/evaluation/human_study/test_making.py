"""A study is blind, repeatable, and refuses pictures that are missing, there twice, or tell by their size."""

import json

import numpy as np
import pytest
from PIL import Image
from tests.evaluation.human_study.conftest import SYSTEMS, write_pictures

from blip3o_hf.evaluation.human_study.criteria import PAPER_CRITERIA, read_criteria
from blip3o_hf.evaluation.human_study.making import make_study
from blip3o_hf.evaluation.human_study.order import mixed, questions_of, sides_of
from blip3o_hf.evaluation.human_study.page import page_of
from blip3o_hf.evaluation.human_study.pictures import read_prompts
from blip3o_hf.evaluation.human_study.study import IDENTICAL, Key, Study


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nothing_that_raters_get_names_a_system(make):
    study, _ = make()
    files = files_of(study.folder)
    public = {name: content for name, content in files.items() if name != "key.json"}
    public |= {mode: page_of(study, mode).encode() for mode in ("server", "file")}
    for name, content in public.items():
        for system in SYSTEMS:
            assert system.encode() not in name.encode() + content, name
        assert b"secret" not in content and b"sources" not in content
    for name in study.images:
        assert Image.open(study.image_path(name)).info == {}


def test_pictures_keep_their_pixels_and_the_key_knows_whose_they_are(make, sources):
    study, key = make()
    for pair in study.pairs:
        for name in pair.images:
            original = Image.open(sources[0][key.pictures[name]] / f"{pair.prompt_id}.png")
            np.testing.assert_array_equal(original, Image.open(study.image_path(name)))


def test_the_place_in_a_pair_does_not_tell_the_system(tmp_path):
    sources = write_pictures(tmp_path / "many", ids=range(200), size=2)
    study, key, _ = make_study(tmp_path / "study", *sources, control=0)
    first = sum(key.pictures[pair.images[0]] == SYSTEMS[0] for pair in study.pairs)
    assert 70 < first < 130
    left = sum(
        key.pictures[sides_of(study, "ann", question)[0]] == SYSTEMS[0] for question in questions_of(study, "ann")
    )
    assert 330 < left < 470


def test_the_same_seed_gives_the_same_study_and_another_seed_another(make):
    first, second, other = make("a")[0], make("b")[0], make("c", seed=4)[0]
    assert files_of(first.folder) == files_of(second.folder)
    assert not first.images & other.images and not set(first.by_id) & set(other.by_id)
    assert questions_of(first, "ann") == questions_of(second, "ann") != questions_of(other, "ann")


def test_every_rater_gets_all_questions_in_an_order_of_their_own(study):
    asked = questions_of(study, "ann")
    assert len(set(asked)) == len(asked) == study.questions_per_rater == 10 * 2 * 2
    assert set(asked) == set(questions_of(study, "bob")) and asked != questions_of(study, "bob")
    assert [question.round for question in asked] == [1] * 20 + [2] * 20


def test_the_hash_mixes_its_bits():
    bits = np.array([[mixed(7, "ann", i) >> bit & 1 for bit in range(32)] for i in range(2000)])
    assert (abs(bits.mean(axis=0) - 0.5) < 0.05).all()
    assert (abs(np.corrcoef(bits.T) - np.eye(32)) < 0.1).all()


def test_control_pairs_are_of_both_kinds_and_look_like_others(make):
    study, key = make()
    kinds = [key.controls[pair.id] for pair in study.pairs if pair.id in key.controls]
    assert len(kinds) == 4 and kinds.count(IDENTICAL) == 2
    for pair in study.pairs:
        control = key.controls.get(pair.id)
        if control == IDENTICAL:
            first, second = (study.image_path(name).read_bytes() for name in pair.images)
            assert first == second and pair.images[0] != pair.images[1]
        elif control:
            assert study.by_id[control].images == pair.images and control != pair.id
    assert make("none", control=0)[1].controls == {}


def test_equal_pictures_of_two_systems_have_two_names(tmp_path, sources):
    folders, prompts = sources
    (folders[SYSTEMS[1]] / "002.png").write_bytes((folders[SYSTEMS[0]] / "002.png").read_bytes())
    study, key, _ = make_study(tmp_path / "study", folders, prompts, control=0)
    pair = next(pair for pair in study.pairs if pair.prompt_id == "002")
    assert {key.pictures[name] for name in pair.images} == set(SYSTEMS)


def test_three_systems_are_compared_in_all_pairs(tmp_path):
    systems = (*SYSTEMS, "third")
    study, key, _ = make_study(tmp_path / "s", *write_pictures(tmp_path / "three", systems), control=0)
    met = [tuple(sorted(key.pictures[name] for name in pair.images)) for pair in study.pairs]
    assert len(met) == 18 and len(set(met)) == 3


def test_numbered_pictures_of_runs_are_found(tmp_path, sources):
    folders, prompts = sources
    before = make_study(tmp_path / "before", folders, prompts)[0]
    for path in list(folders[SYSTEMS[0]].glob("*.png")):
        path.with_suffix("").mkdir()
        path.replace(path.with_suffix("") / "0.png")
        Image.new("RGB", (8, 8)).save(path.with_suffix("") / "10.png")
    assert make_study(tmp_path / "after", folders, prompts)[0].id == before.id


def test_the_folder_of_a_run_is_that_of_its_pictures(tmp_path, sources):
    folders, prompts = sources
    run = tmp_path / "run"
    for path in folders[SYSTEMS[0]].iterdir():
        (run / "pictures" / path.stem).mkdir(parents=True)
        (run / "pictures" / path.stem / "0.png").write_bytes(path.read_bytes())
    (run / "run.json").write_text("{}")
    study, _ = make_study(tmp_path / "study", {SYSTEMS[0]: run, SYSTEMS[1]: folders[SYSTEMS[1]]}, prompts)[:2]
    assert len(study.pairs) >= 6


def test_lines_of_prompts_end_where_files_say(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("one\u2028still one\r\ntwo\n")
    assert [(item.id, item.prompt) for item in read_prompts(path)] == [
        ("00000", "one\u2028still one"),
        ("00001", "two"),
    ]


def test_missing_pictures_are_counted_and_named_or_left_out_on_request(tmp_path, sources):
    folders, prompts = sources
    (folders[SYSTEMS[0]] / "001.png").unlink()
    (folders[SYSTEMS[1]] / "004.png").rename(folders[SYSTEMS[1]] / "other.png")
    told = r"of the 6 prompts\. janus-pro-secret lacks 1 \(001\); blip3o-secret lacks 1 \(004\)\. .*--skip-missing"
    with pytest.raises(ValueError, match=told):
        make_study(tmp_path / "study", folders, prompts)
    assert not (tmp_path / "study").exists() and not list(tmp_path.glob(".partial-*"))
    study, key, notes = make_study(tmp_path / "study", folders, prompts, control=0, skip_missing=True)
    assert {pair.prompt_id for pair in study.pairs} == {"000", "002", "003", "005"}
    assert key.left_out == ("001", "004") and "001, 004" in notes[0]
    assert notes[1:] == ["1 pictures of blip3o-secret belong to no prompt, such as other"]


def test_sizes_that_would_tell_are_refused_and_scaled_on_request(tmp_path, sources):
    folders, prompts = sources
    Image.new("RGB", (16, 16)).save(folders[SYSTEMS[1]] / "003.png")
    with pytest.raises(
        ValueError, match=r"one size, .* Those of 003 have 8 x 8 of janus.*, 16 x 16 of blip3o.*--size"
    ):
        make_study(tmp_path / "study", folders, prompts)
    study = make_study(tmp_path / "study", folders, prompts, size=12)[0]
    assert {Image.open(study.image_path(name)).size for name in study.images} == {(12, 12)}
    Image.new("RGB", (16, 8)).save(folders[SYSTEMS[1]] / "003.png")
    with pytest.raises(ValueError, match="12 x 12 of janus-pro-secret, 12 x 6 of blip3o-secret"):
        make_study(tmp_path / "other", folders, prompts, size=12)


def test_other_wrong_pictures_are_refused(tmp_path, sources):
    folders, prompts = sources
    first = folders[SYSTEMS[0]]
    (first / "002.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"one picture.* has 002\.jpg and 002\.png for '002'. Take one away"):
        make_study(tmp_path / "study", folders, prompts)
    (first / "002.jpg").unlink()
    (first / "002.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"An image must be readable.*002\.png"):
        make_study(tmp_path / "study", folders, prompts)
    assert not (tmp_path / "study").exists()
    with pytest.raises(NotADirectoryError, match=r"other has .*nowhere, which is none"):
        make_study(tmp_path / "study", {**folders, "other": tmp_path / "nowhere"}, prompts)
    with pytest.raises(ValueError, match=r"compares two systems with names or more\. Got \['a'\]"):
        make_study(tmp_path / "study", {"a": first}, prompts)


def test_settings_out_of_range_and_folders_in_use_are_refused(tmp_path, sources):
    for settings, told in (
        ({"control": 13}, r"at most twice the prompts, 12\. Got 13"),
        ({"rounds": 0}, "`rounds` must be a whole number of at least 1"),
        ({"size": 0}, "`size` must be"),
        ({"control": -1}, "`control` must be"),
    ):
        with pytest.raises(ValueError, match=told):
            make_study(tmp_path / "study", *sources, **settings)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(FileExistsError, match="A study needs a folder of its own"):
        make_study(tmp_path / "used", *sources)


def test_an_edited_or_incomplete_study_is_refused(make):
    study, key = make()
    assert Study.read(study.folder) == study and Key.read(study) == key
    path = study.folder / "study.json"
    text = path.read_text()
    path.write_text(text.replace("picture 001", "picture 002"))
    with pytest.raises(ValueError, match=r"Its content does not give its id '[0-9a-f]{16}': it was edited"):
        Study.read(study.folder)
    path.write_text(text.replace('"pairs"', '"pears"'))
    with pytest.raises(ValueError, match=r"must be as `human-study make` wrote it. It is not \(KeyError: 'pairs'\)"):
        Study.read(study.folder)
    path.write_text(text)
    name = min(study.images)
    content = study.image_path(name).read_bytes()
    study.image_path(name).unlink()
    with pytest.raises(FileNotFoundError, match=f"1 are missing, such as {name}"):
        Study.read(study.folder)
    study.image_path(name).write_bytes(content)
    (study.folder / "key.json").write_text((make("b", seed=9)[0].folder / "key.json").read_text())
    with pytest.raises(ValueError, match="must belong to its study"):
        Key.read(study)
    (study.folder / "key.json").unlink()
    with pytest.raises(FileNotFoundError, match="The analysis needs the key of the study"):
        Key.read(study)


def test_prompts_of_all_layouts(tmp_path):
    (tmp_path / "a.txt").write_text("a cat\n\na dog\n")
    assert [(item.id, item.prompt) for item in read_prompts(tmp_path / "a.txt")] == [
        ("00000", "a cat"),
        ("00002", "a dog"),
    ]
    (tmp_path / "b.txt").write_text("x1\ta cat\nx2\ta dog\n")
    assert [item.id for item in read_prompts(tmp_path / "b.txt")] == ["x1", "x2"]
    (tmp_path / "c.jsonl").write_text('{"id": 7, "prompt": "a cat", "tag": "more"}\n')
    assert [(item.id, item.prompt) for item in read_prompts(tmp_path / "c.jsonl")] == [("7", "a cat")]
    (tmp_path / "dpg").mkdir()
    (tmp_path / "dpg" / "COCOval1.txt").write_text("a cat\non a mat\n")
    assert [(item.id, item.prompt) for item in read_prompts(tmp_path / "dpg")] == [("COCOval1", "a cat\non a mat")]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.jsonl", '{"id": "1", "prompt": "a"}\n{"id": "1", "prompt": "b"}\n', "has '1' twice"),
        ("a.jsonl", '{"prompt": "a"}\n', "Number 0 of .* has None"),
        ("a.jsonl", '{"id": "../x", "prompt": "a"}\n', r"has '\.\./x'"),
        ("a.jsonl", '{"id": "1"}\n', "1 of .*a.jsonl has None. Add it"),
        ("a.jsonl", '{"id": "1", "prompt"', "Line 1 is none"),
        ("a.txt", "1\ta cat\na dog\n", "has 1 with a tab, of 2"),
        ("a.txt", "\n", "A study needs prompts"),
        ("a.csv", "a", "a .jsonl or .txt file, or a folder"),
    ],
)
def test_bad_prompts_are_refused(tmp_path, name, text, told):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=told):
        read_prompts(tmp_path / name)


def test_criteria_are_those_of_the_paper_or_of_a_file(tmp_path, study):
    assert study.criteria == PAPER_CRITERIA
    assert "select the BEST image you prefer based on visual appeal, such as layout, clarity" in (
        study.criteria[0].instruction
    )
    path = tmp_path / "criteria.json"
    path.write_text(json.dumps([{"id": "funny", "name": "Funny", "instruction": "Which is funnier?"}]))
    assert [criterion.id for criterion in read_criteria(path)] == ["funny"]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ({}, "must be a JSON list of mappings"),
        ([{"id": "a", "name": "A"}], "must have the texts id, name, instruction"),
        ([{"id": "a b", "name": "A", "instruction": "?"}], "small letters, digits and `_`"),
        ([{"id": "a", "name": "A", "instruction": "?"}] * 2, "has one twice"),
        ([{"id": "a", "name": "A", "instruktion": "?"}], "Did you mean 'instruction'"),
    ],
)
def test_bad_criteria_are_refused(tmp_path, rows, told):
    (tmp_path / "criteria.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=told):
        read_criteria(tmp_path / "criteria.json")
