"""Prompts: from templates, chat models and files; what repeats or is a benchmark's is dropped and counted."""

import itertools
import json
import shutil
from collections import Counter

import pytest

from blip3o_hf.cli import main
from blip3o_hf.collection.categories import Category, read_categories, shares
from blip3o_hf.collection.prompt_files import Excluded, read_prompts
from blip3o_hf.collection.prompts import prompts_of_categories, select_prompts
from blip3o_hf.collection.similar_texts import SIMILAR, SimilarTexts

LONG = "a tall lighthouse of white stone on a cliff above the sea at dusk with gulls around its lamp and a small boat"


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# Categories


def test_the_papers_four_categories_give_ten_thousand_prompts_each():
    categories = read_categories("paper")
    assert [category.name for category in categories] == ["gestures", "objects", "landmarks", "text"]
    assert all(category.num_combinations >= 10_000 and category.about for category in categories)
    prompts = prompts_of_categories(categories, 80, Excluded()).prompts
    assert Counter(prompt.category for prompt in prompts[:40]) == dict.fromkeys(
        ["gestures", "objects", "landmarks", "text"], 10
    )
    assert len({prompt.text for prompt in prompts}) == 80


def test_templates_give_each_combination_once_in_an_order_of_the_seed():
    category = Category("a", "", ("{x} {y}", "{x}!"), {"x": ("p", "q", "r"), "y": ("s", "t")})
    first, second = list(category.prompts(0)), list(category.prompts(1))
    assert (
        sorted(first)
        == sorted(second)
        == sorted([f"{x} {y}" for x, y in itertools.product("pqr", "st")] + ["p!", "q!", "r!"])
    )
    assert first != second and first == list(category.prompts(0))


def test_shares_are_whole_numbers_that_sum_up():
    categories = [Category("a", "x", share=1), Category("b", "x", share=1), Category("c", "x", share=0.5)]
    for number in range(30):
        assert sum(shares(categories, number)) == number
    assert shares(categories, 10) == [4, 4, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "must be a mapping of their names"),
        ("a: 3", "A category must be a mapping"),
        ("a: {share: 1}", "has neither"),
        ("a: {about: x, template: [y]}", "Unknown key 'template'"),
        ("a: {about: x, share: 0}", "must be a number above 0"),
        ("A B: {about: x}", "small letters"),
        ('a: {templates: ["{x} y"]}', "Every place of a template must have words"),
        ('a: {templates: ["{0} y"]}', "must be a name in braces"),
        ('a: {templates: ["{x y"]}', "must hold {names} in braces"),
        ("a: {templates: [yes]}", "Put yes, no, on and off in quotes"),
        ("a: {about: [", "must be YAML"),
    ],
)
def test_bad_categories_are_named(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_categories(tmp_path / "c.yaml")


def test_too_few_combinations_say_how_many_there_are():
    category = Category("a", "", ("a {x}",), {"x": ("dog", "cat")})
    with pytest.raises(ValueError, match=r"must give 5 prompts. It gives 2. Add templates or words"):
        prompts_of_categories([category], 5, Excluded())


# Repetitions and benchmarks


def test_similar_texts_are_found_and_others_are_not():
    texts = SimilarTexts([LONG, "a red circle", "two dogs on a beach"])
    assert texts.find("The RED circle.") == "a red circle"
    assert texts.find(LONG.replace("small boat", "little boat")) == LONG
    for other in ("a red square", "two cats on a beach", LONG.replace("lighthouse", "tower").replace("white", "red")):
        assert texts.find(other) is None


def test_minhash_finds_what_comparing_all_pairs_finds():
    words = [f"w{number}" for number in range(40)]
    texts = [" ".join([*words[:start], "other", *words[start + 1 :]]) for start in range(0, 40, 4)]
    found = SimilarTexts([" ".join(words)])
    assert SIMILAR == 0.8 and all(found.find(text) for text in texts)  # 39 of 43 pairs in common


def test_benchmark_prompts_are_left_out_equal_similar_and_quoted(tmp_path):
    (tmp_path / "geneval.jsonl").write_text('{"tag": "colors", "prompt": "a photo of a red apple"}\n')
    (tmp_path / "wise.json").write_text(json.dumps([{"Prompt": "the animal on the flag of Wales", "prompt_id": 1}]))
    (tmp_path / "dpg").mkdir()
    (tmp_path / "dpg" / "0.txt").write_text(LONG + ".\nIt is night.")
    excluded = Excluded([tmp_path / "geneval.jsonl", tmp_path / "wise.json", tmp_path / "dpg"])
    quoted = "gulls and " + " ".join(LONG.split()[3:14])
    candidates = ["A photo of a red apple!", "The animal on the flag of wales", LONG + " it is night now", quoted]
    candidates += [" ", "a [IMG] b", "A photo of a green apple", "a photo of a pear"]
    selection = select_prompts([("a", 1, candidates)], excluded)
    assert [prompt.text for prompt in selection.prompts] == ["A photo of a green apple"]
    assert selection.counts == {
        "empty": 1,
        "equal to a benchmark prompt": 2,
        "not a text to learn from": 1,
        "words in common with a benchmark prompt": 2,
    }
    assert selection.dropped[0].found == "a photo of a red apple (geneval.jsonl)"
    assert Excluded([tmp_path / "geneval.jsonl"]).problem("a photo of a green apple") is None


def test_a_prompt_that_is_nearly_a_benchmarks_is_left_out(tmp_path):
    words = ["one", "two", "three", "four", "five", "six", "seven"]
    (tmp_path / "a.txt").write_text(" ".join(words) + "\n")  # shorter than what counts as a quotation
    excluded = Excluded([tmp_path / "a.txt"])
    assert excluded.problem(" ".join([*words, "eight"])) is None  # 7 of 10 pairs in common
    (tmp_path / "a.txt").write_text(" ".join(words + [f"{word}teen" for word in words]) + "\n")
    changed = [word if word != "four" else "for" for word in words] + [f"{word}teen" for word in words[:6]] + ["x"]
    assert Excluded([tmp_path / "a.txt"]).problem(" ".join(changed)) is not None


def test_line_breaks_within_a_prompt_are_part_of_it(tmp_path):
    (tmp_path / "a.csv").write_text('prompt,category\n"a cat\non a mat",pets\r\na\u2028dog,\n')
    (tmp_path / "a.jsonl").write_text('{"prompt": "a cat\u2028on a mat"}\r\n{"prompt": "a dog"}\n')
    (tmp_path / "a.txt").write_text("a cat\u2028on a mat\r\n\r\na dog\n")
    for name in ("a.csv", "a.jsonl", "a.txt"):
        assert [" ".join(each.text.split()) for each in read_prompts(tmp_path / name)] == ["a cat on a mat", "a dog"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": "b', "Line 2 of .*a.jsonl is not: .* It may be cut off"),
        ("a.jsonl", '{"tag": "a"}\n', "Item or line 1 of .* has none"),
        ("a.json", "{}", "must be one list"),
        ("a.txt", "\n\n", "holds none"),
        ("a.yaml", "a", "Prompts are read from .txt"),
        ("a.csv", "index,words\n1,a\n", "Item or line 2 of .* has none"),
        ("a.csv", "prompt\na\n" + "b" * 200_000, "After line 2 of .*a.csv: field larger than"),
    ],
)
def test_bad_files_of_prompts_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_prompts(tmp_path / "none.txt")


# The command


def test_prompts_of_a_file_keep_their_order_and_categories(tmp_path, capsys):
    (tmp_path / "p.csv").write_text("prompt,category\na cat,pets\nA cat!,pets\na dog,\n")
    assert main(["collect", str(tmp_path / "out"), "--prompts", str(tmp_path / "p.csv"), "--prompts-only"]) == 0
    assert lines(tmp_path / "out" / "prompts.jsonl") == [
        {"id": "000000", "category": "pets", "text": "a cat"},
        {"id": "000001", "category": "given", "text": "a dog"},
    ]
    assert lines(tmp_path / "out" / "dropped_prompts.jsonl") == [
        {"category": "pets", "text": "A cat!", "reason": "repeats an earlier prompt", "found": "a cat"}
    ]
    assert "1 dropped: repeats an earlier prompt" in capsys.readouterr().out


def writing(endpoint, *answers):
    """Let the endpoint write prompts: these answers first, then further ones."""
    waiting, count = list(answers), itertools.count()

    def say(text, body):
        assert body["response_format"]["json_schema"]["strict"]
        return (
            waiting.pop(0) if waiting else json.dumps({"prompts": [f"thing number {next(count)}" for _ in range(9)]})
        )

    endpoint.say = say


def write(endpoint, folder, number, *words):
    command = ["collect", str(folder), "--prompts-only", "--number", str(number), "--writer", "openai:poet"]
    return main([*command, "--base-url", endpoint.base_url, *words])


def test_a_chat_model_writes_prompts_by_category(endpoint, tmp_path, capsys):
    writing(endpoint, json.dumps({"prompts": ["a man nocking an arrow", "A man nocking an arrow.", "a woman waving"]}))
    assert write(endpoint, tmp_path / "out", 8) == 0
    prompts = lines(tmp_path / "out" / "prompts.jsonl")
    assert len({each["text"] for each in prompts}) == 8 and prompts[0]["text"] == "a man nocking an arrow"
    assert "1 dropped: repeats an earlier prompt" in capsys.readouterr().out
    asked = [body["messages"][0]["content"] for _, body in endpoint.bodies]
    assert len(asked) == 4 and "nocking an arrow" in asked[0] and "Golden Gate" in asked[2]
    before = (tmp_path / "out" / "prompts.jsonl").read_bytes()
    assert write(endpoint, tmp_path / "out", 8) == 0  # the same prompts, though the model would say others
    assert len(endpoint.bodies) == 4 and (tmp_path / "out" / "prompts.jsonl").read_bytes() == before


def test_finished_shards_keep_their_prompts(endpoint, tmp_path, capsys):
    writing(endpoint)
    words = ["--teacher", "openai:painter", "--terms", "for tests", "--number", "4"]
    command = ["collect", str(tmp_path / "out"), "--writer", "openai:poet", "--base-url", endpoint.base_url, *words]
    draw = endpoint.draw
    endpoint.draw = lambda prompt, seed: draw("a red circle on a white background", len(endpoint.bodies))
    assert main(command) == 0
    file, number = tmp_path / "out" / "prompts.jsonl", len(endpoint.bodies)
    before = file.read_bytes()
    shutil.rmtree(tmp_path / "out" / "work")
    assert main(command) == 0
    assert file.read_bytes() == before and len(endpoint.bodies) == number
    capsys.readouterr()
    file.write_bytes(before.replace(b"thing", b"other"))
    assert main(command) == 2
    assert "A collection goes on with the prompts that it began with." in capsys.readouterr().err
    file.unlink()
    assert main(command) == 2  # the writer says others now
    assert "or others would be chosen now" in capsys.readouterr().err and not file.exists()


def test_answers_of_another_form_are_asked_for_again_and_then_an_error(endpoint, tmp_path, capsys):
    writing(endpoint, "Sure! Here are some:", '{"prompts": "a"}')
    assert write(endpoint, tmp_path / "a", 4) == 0
    assert len(endpoint.bodies) == 6
    writing(endpoint, *["Sure!"] * 3)
    assert write(endpoint, tmp_path / "b", 4) == 2
    assert "must answer with JSON that holds `prompts`" in capsys.readouterr().err


def test_a_chat_model_that_repeats_itself_comes_to_an_end(endpoint, tmp_path, capsys):
    endpoint.say = lambda text, body: json.dumps({"prompts": ["a dog"]})
    assert write(endpoint, tmp_path / "out", 8) == 2
    said = capsys.readouterr().err
    assert "'gestures' must give 2 prompts. It gives 1, 5 dropped: repeats an earlier prompt." in said
