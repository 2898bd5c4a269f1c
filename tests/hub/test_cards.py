"""Model cards say what is known and no more, pass their check once a licence is stated, and are never overwritten."""

import ast
import json
import re
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, parse_eval_result_entries
from PIL import Image
from tests.published_layout import write_published_checkpoint

import blip3o_hf
from blip3o_hf.assets import packaged_model_path
from blip3o_hf.cli import main
from blip3o_hf.conversion.published import convert_published
from blip3o_hf.evaluation.statistics import Rate
from blip3o_hf.hub.card_check import front_matter
from blip3o_hf.hub.cards import MARK, Origin, base_of, card_file_problems, card_problems, update_card, write_card
from blip3o_hf.hub.provenance import code_version, public_name, versions
from blip3o_hf.hub.results import Evaluation, Figure, Score
from blip3o_hf.hub.sections import code_blocks, sections
from blip3o_hf.training.feature_cache import ShardWriter, write_index
from blip3o_hf.training.recipes import load_recipe

ROOT = Path(__file__).parents[2]
MODEL_CARDS = sorted((ROOT / "model_cards").glob("*.md"))
TINY = packaged_model_path("blip3o-tiny")
NO_LICENSE = "`license` is missing from the front matter. State it: blip3o-hf card write FOLDER --license apache-2.0."
SECTIONS = (
    "Use",
    "What is inside",
    "Training",
    "Data",
    "Results",
    "Limits and biases",
    "Licence",
    "Environment",
    "Citation",
)


@pytest.fixture(scope="module")
def saved(make_pipeline, tmp_path_factory):
    """A folder that `Blip3oPipeline.save_pretrained` wrote; not to be changed."""
    folder = tmp_path_factory.mktemp("saved") / "drawer"
    make_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    """The least that a card can be about, with a good card."""
    folder = tmp_path / "part"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"_class_name": "Blip3oPatchDecoder"}))
    write_card(folder, Origin(license={"license": "mit"}))
    return folder


@pytest.fixture
def card(folder):
    return folder / "README.md"


def evaluation(benchmark="Benchmark", value=0.5, dataset=None):
    return Evaluation(
        benchmark=benchmark,
        about="Pictures are looked at.",
        command="blip3o-hf evaluate",
        date="2026-01-31T12:00:00Z",
        settings={"seed": 0},
        versions={"torch": "2"},
        scores=(
            Score("text-to-image", "colors", Figure(value, (0.4, 0.6)), 1000, {"chance": Figure(0.1, (0.0, 0.2))}),
            Score("visual-question-answering", "colors", Figure(0.25), 4),
        ),
        dataset=dataset,
    )


def state_license(folder):
    assert main(["card", "write", str(folder), "--license", "apache-2.0"]) == 0


def run_quickstart(text, place):
    """Run the Python of a card where its folder is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        names = {}
        for code in code_blocks(text, "python"):
            exec(compile(code, "card", "exec"), names)
        return names


# What programs write


def test_a_saved_pipeline_has_a_card_that_lacks_a_licence_alone(saved):
    assert card_problems(saved) == [NO_LICENSE]
    data = ModelCard.load(saved / "README.md").data
    assert (data.library_name, data.pipeline_tag) == ("blip3o_hf", "text-to-image")
    assert {"blip3o", "any-to-any", "diffusers"} <= set(data.tags)
    assert data.license is None and data.base_model is None and data.get("base_model_relation") is None


def test_the_card_counts_what_is_stored(saved, pipeline):
    text = (saved / "README.md").read_text()
    parts = {"queries": pipeline.model.queries, "transformer": pipeline.transformer, "decoder": pipeline.decoder}
    for name, part in parts.items():
        number = sum(parameter.numel() for parameter in part.parameters())
        assert re.search(rf"^\| {name} \| .* \| {number:,} \|$", text, re.MULTILINE), name
    assert "Next-DiT: 32 wide, 2 layers, 2 heads, 16 tokens of 16 channels" in text
    assert "Stored as float32" in text


def test_the_quickstart_of_a_saved_pipeline_runs(saved):
    names = run_quickstart((saved / "README.md").read_text(), saved.parent)
    assert names["image"].size == Image.open(saved.parent / "out.png").size


def test_a_pipeline_without_a_decoder_shows_how_to_get_features(make_pipeline, tmp_path):
    make_pipeline(decoder=None).save_pretrained(tmp_path / "features")
    names = run_quickstart((tmp_path / "features" / "README.md").read_text(), tmp_path)
    assert names["features"].shape[0] == 1


@pytest.mark.parametrize("text", ["mine", f"---\nlicense: mit\n---\n{MARK}\nedited", "---\n: [\n---\n"])
def test_saving_a_pipeline_keeps_the_card_that_is_there(pipeline, tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    pipeline.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == text


def test_a_pipeline_from_the_hub_names_where_it_came_from(pipeline, tmp_path):
    pipeline.register_to_config(_name_or_path="owner/some-model")
    pipeline.save_pretrained(tmp_path / "a")
    assert front_matter(tmp_path / "a" / "README.md")["base_model"] == "owner/some-model"
    assert "Whether weights were changed in between is not known." in (tmp_path / "a" / "README.md").read_text()
    pipeline.register_to_config(_name_or_path=str(tmp_path / "a"))
    pipeline.save_pretrained(tmp_path / "b")
    assert str(tmp_path) not in (tmp_path / "b" / "README.md").read_text()


def test_a_card_of_a_person_is_kept_and_a_generated_one_is_renewed_with_its_licence(folder, card):
    write_card(folder, Origin(summary="Second."))
    assert "Second." in card.read_text() and front_matter(card)["license"] == "mit"
    edited = card.read_text().replace(MARK, "")
    card.write_text(edited)
    write_card(folder, Origin(summary="Third."))
    assert card.read_text() == edited
    write_card(folder, Origin(summary="Third."), replace=True)
    assert "Third." in card.read_text() and front_matter(card)["license"] == "mit"


def test_a_card_needs_weights_to_describe(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"A card describes weights\. .* holds no model_index\.json, adapter"):
        write_card(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folders of a short training of the packaged model, and of adapters on it."""
    root = tmp_path_factory.mktemp("trained")
    for name, model in {"whole": "{}", "adapters": "{lora: {rank: 2}}"}.items():
        (root / f"{name}.yaml").write_text(
            "stage: generation\n"
            f"output_dir: {root / name}\n"
            "inputs: {model: blip3o-tiny}\n"
            f"model: {model}\n"
            "data: {length: 4}\n"
            "evaluation: {prompts: [a red circle], num_inference_steps: 1}\n"
            "training: {max_steps: 1, per_device_train_batch_size: 2, use_cpu: true, report_to: none,\n"
            "  save_strategy: 'no', remove_unused_columns: false}\n"
        )
        assert main(["train", str(root / f"{name}.yaml"), "--threads", "1"]) == 0
    return root


@pytest.mark.parametrize("place", ["whole", "whole/pipeline", "adapters"])
def test_what_training_leaves_passes_once_a_licence_is_stated(trained, place):
    folder = trained / place
    assert card_problems(folder) == [NO_LICENSE]
    text = (folder / "README.md").read_text()
    data = front_matter(folder / "README.md")
    assert (data["base_model"], data["language"]) == ("blip3o-tiny", ["en"])
    assert data["base_model_relation"] == ("adapter" if place == "adapters" else "finetune")
    assert "1 step of 2 records on 1 process (cpu)" in text and "max_steps: 1" in text
    assert code_version() in text and re.search(r"parameters, [\d,]+ train", text)
    assert str(trained) not in text, "paths of this machine"
    state_license(folder)
    assert card_problems(folder) == []


def test_a_trained_pipeline_shows_its_last_samples(trained):
    sheet = Image.open(trained / "whole" / "pipeline" / "samples.png")
    assert sheet.tobytes() == Image.open(trained / "whole" / "samples-1.png").tobytes()
    assert "![Samples](samples.png)" in (trained / "whole" / "pipeline" / "README.md").read_text()


def test_the_quickstart_of_adapters_runs(trained):
    names = run_quickstart((trained / "adapters" / "README.md").read_text(), trained)
    assert names["image"].size == (64, 64)


def test_training_again_keeps_the_card_of_a_person(trained, tmp_path):
    """PEFT by itself would change it."""
    (tmp_path / "README.md").write_text("A person wrote this.")
    load_recipe(trained / "adapters.yaml", [f"output_dir={tmp_path}"]).trainer().save_result()
    assert (tmp_path / "README.md").read_text() == "A person wrote this."


def test_what_a_model_was_made_from_is_handed_on(tmp_path, folder, card):
    assert base_of("blip3o-tiny") == base_of(TINY) == (("blip3o-tiny",), True)
    assert base_of("owner/name") == (("owner/name",), True)
    assert base_of(str(folder)) == ((), False), "a folder that says nothing"
    write_card(folder, Origin(is_trained=True))
    assert base_of(str(folder)) == ((), True), "trained from nothing"
    update_card(card, base_model=["owner/name"])
    assert base_of(str(folder)) == (("owner/name",), True)
    card.write_text("---\n: [\n---\n")
    assert base_of(str(folder)) == base_of(str(tmp_path / "none")) == ((), False)


def test_rounded_weights_keep_what_is_known_of_them(trained, tmp_path):
    assert main(["export", str(trained / "whole" / "pipeline"), str(tmp_path / "rounded")]) == 0
    text = (tmp_path / "rounded" / "README.md").read_text()
    assert "rounded to bfloat16 by `blip3o-hf export`" in text and "\n# rounded\n" in text
    assert "1 step of 2 records" in text and "Stored as bfloat16" in text and "samples.png" not in text
    assert front_matter(tmp_path / "rounded" / "README.md")["base_model"] == "blip3o-tiny"


@pytest.mark.parametrize("settings", [{"diffusion_decoder": True}, {}, {"tokenizer": None}])
def test_what_the_converter_leaves_passes_once_a_licence_is_stated(tmp_path, settings):
    write_published_checkpoint(tmp_path / "source", **settings)
    convert_published(tmp_path / "source", tmp_path / "target")
    assert card_problems(tmp_path / "target") == [NO_LICENSE]
    state_license(tmp_path / "target")
    assert card_problems(tmp_path / "target") == []
    text = (tmp_path / "target" / "README.md").read_text()
    assert "of the source, bit for bit" in text and "Nothing was trained here." in text
    assert ("There is no processor" in text) == ("tokenizer" in settings)


def test_the_converter_takes_over_the_licence_of_the_source(tmp_path):
    write_published_checkpoint(tmp_path / "source")
    stated = {"license": "other", "license_name": "own", "license_link": "https://example.com"}
    (tmp_path / "source" / "README.md").write_text(f"---\n{yaml.safe_dump(stated)}---\n# Source\n")
    convert_published(tmp_path / "source", tmp_path / "target")
    assert card_problems(tmp_path / "target") == []
    assert "[own](https://example.com)" in (tmp_path / "target" / "README.md").read_text()


# Precomputed features


@pytest.fixture
def features(tmp_path):
    """The least of a folder of features, with a good card."""
    folder = tmp_path / "cache"
    folder.mkdir()
    writer = ShardWriter(folder, "targets", 0, torch.float32, 8)
    writer.add([7, 8], torch.arange(16.0).reshape(2, 2, 2, 2))
    writer.link([70, 80, 81], [7, 8, 8])
    writer.flush()
    write_index(folder, "targets")
    made_by = {"weights of the target encoder": "0123456789abcdef", "feature_size": 2}
    manifest = {"targets": {"dtype": "float32", "fingerprint": made_by}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    write_card(folder, Origin(license={"license": "mit"}))
    return folder


def test_a_card_of_features_says_what_there_is_what_made_it_and_how_to_read_it(features, monkeypatch):
    assert main(["card", "check", str(features)]) == main(["card", "check", str(features / "README.md")]) == 0
    text = (features / "README.md").read_text()
    assert "| targets | 3 | 2 | 2 x 2 x 2 | float32 |" in text
    assert "- weights of the target encoder: 0123456789abcdef\n- feature_size: 2\n" in text
    assert "## Licence\n\nmit.\n" in text and "@article{chen2025blip3o" in text
    data = front_matter(features / "README.md")
    assert data["tags"] == ["blip3o", "precomputed-features"] and not {"library_name", "pipeline_tag"} & data.keys()
    assert main(["card", "write", str(features), "--name", "me/features"]) == 0
    pulled = {("me/features", "dataset"): features}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, repo_type: pulled[name, repo_type])
    names = run_quickstart((features / "README.md").read_text(), features)
    assert names["address"] == 70 and names["row"].flatten().tolist() == list(range(8))


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("license: mit\n", "", NO_LICENSE),
        (r"tags:\n(- .*\n)+", "", "`tags` is missing from the front matter. State it: tags: [blip3o, precomputed-f"),
        (
            r"\| targets \| 3 ",
            "| targets | 4 ",
            "The card does not say how many targets there are. Put this line into",
        ),
        ("abcdef", "abcdee", "it lacks 1 of 2 lines of their fingerprint. Put them in, or run `blip3o-hf precompute`"),
        ("```python", "```", "The card has no quickstart."),
        ("## Limits and biases", "## Other", "The card does not say what it cannot do."),
    ],
)
def test_every_defect_of_a_card_of_features_is_named(features, old, new, problem):
    card = features / "README.md"
    text, number = re.subn(old, new, card.read_text(), count=1)
    assert number == 1
    card.write_text(text)
    (found,) = card_problems(features)
    assert problem in found and found.endswith(".")


# What people change


def test_a_licence_is_stated_in_front_matter_and_text(saved, tmp_path, capsys):
    path = tmp_path / "card.md"
    path.write_text((saved / "README.md").read_text().replace("Data\n\nWhat", "Data\n\nMy own. What"))
    assert main(["card", "write", str(path), "--license", "apache-2.0", "--language", "en", "de"]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    assert front_matter(path)["license"] == "apache-2.0" and front_matter(path)["language"] == ["en", "de"]
    assert "## Licence\n\napache-2.0.\n" in path.read_text() and "My own." in path.read_text()
    assert main(["card", "write", str(path), "--license", "mit"]) == 0
    assert "## Licence\n\nmit.\n" in path.read_text()
    assert main(["card", "check", str(path)]) == 0


def test_the_name_of_the_repository_goes_into_title_and_code(saved, tmp_path):
    path = write_card(saved, replace=True)
    before = path.read_text()
    update_card(path, name="me/painter")
    text = path.read_text()
    path.write_text(before)
    assert "\n# painter\n" in text and 'from_pretrained("me/painter")' in text and '"drawer"' not in text


def test_results_go_into_front_matter_table_and_entries(folder, card):
    update_card(card, evaluations=[evaluation(dataset="owner/benchmark")])
    results = ModelCard.load(card).data.eval_results
    assert [result.metric_value for result in results] == [0.5, 0.25]
    assert {result.metric_name for result in results} == {"colors, measured here"}
    text = card.read_text()
    assert "| colors | 0.500 [0.400, 0.600] | 0.100 [0.000, 0.200] | 1,000 |" in text
    assert "| colors | 0.250 | 4 |" in text
    for line in ("command: `blip3o-hf evaluate`", "settings: seed 0", "versions: torch 2", "date: 2026-01-31"):
        assert f"- {line}" in text
    assert "No figure was entered" not in text
    entries = parse_eval_result_entries(
        yaml.safe_load((folder / ".eval_results" / "owner--benchmark.yaml").read_text())
    )
    assert [(entry.dataset_id, entry.task_id, entry.value) for entry in entries] == [
        ("owner/benchmark", "default", 0.5),
        ("owner/benchmark", "default", 0.25),
    ]
    assert card_problems(folder) == []


def test_a_benchmark_outside_the_hub_has_no_entry(folder, card):
    update_card(card, evaluations=[evaluation()])
    assert not (folder / ".eval_results").exists()
    assert card_problems(folder) == []


def test_a_second_run_replaces_the_first_and_leaves_other_results(folder, card):
    reported = "### Benchmark\n\nReported by the authors (https://example.com).\n\n| colors | 0.9 |\n| --- | --- |\n\n"
    source = EvalResult(
        task_type="text-to-image",
        dataset_type="benchmark",
        dataset_name="Benchmark",
        metric_type="score",
        metric_value=0.9,
        metric_name="colors, reported by the authors",
        source_url="https://example.com",
    )
    page = ModelCard.load(card)
    page.data["eval_results"], page.data["model_name"] = [source], "part"
    page.text = page.text.replace("## Limits", f"{reported}## Limits")
    page.save(card)
    assert card_problems(folder) == []
    update_card(card, evaluations=[evaluation(), evaluation("Other")])
    update_card(card, evaluations=[evaluation(value=0.75)])
    text = card.read_text()
    assert reported in text and "| 0.500" not in text[: text.index("### Other")]
    assert [heading for heading, _ in sections(text, 3) if heading] == ["Benchmark", "Benchmark", "Other"]
    results = ModelCard.load(card).data.eval_results
    assert sorted(result.metric_value for result in results) == [0.25, 0.25, 0.5, 0.75, 0.9]
    assert [result.metric_value for result in results if result.source_url] == [0.9]
    assert card_problems(folder) == []
    once = card.read_text()
    update_card(card, evaluations=[evaluation(value=0.75)])
    assert card.read_text() == once


def test_a_results_file_is_read_as_it_was_written(tmp_path):
    evaluation(dataset="a/b").write(tmp_path / "results.json")
    assert Evaluation.read(tmp_path / "results.json") == evaluation(dataset="a/b")
    for text in ("{}", "no", '{"scores": [{"task": 1}]}', "[]"):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(ValueError, match=r"that `blip3o-hf evaluate --output` wrote\. .*other\.json is not one"):
            Evaluation.read(tmp_path / "other.json")


def test_what_evaluate_writes_goes_into_a_card(folder, card, tmp_path, capsys):
    out = tmp_path / "results.json"
    call = ["evaluate", "--per-family", "1", "--per-kind", "1", "--pictures", "2", "--per-edit", "1"]
    call += ["--steps", "1", "--seed", "3", "--output", str(out)]
    assert main(call) == 0
    read = Evaluation.read(out)
    assert read.settings["seed"] == 3 and read.settings["steps"] == 1 and read.settings["guidance"] == 2.0
    assert read.versions == versions() and read.date.endswith("Z")
    assert read.command.startswith("blip3o-hf evaluate --model blip3o-tiny --per-family 1 ")
    overall = [score for score in read.scores if score.name == "overall"]
    assert [score.total for score in overall] == [8, 8] and set(overall[0].beside) == {
        "one attempt",
        "chance",
        "ceiling",
    }
    capsys.readouterr()
    assert main(["card", "write", str(folder), "--results", str(out)]) == 0
    assert capsys.readouterr().out == f"{card}\n"
    assert card_problems(folder) == []
    assert len(ModelCard.load(card).data.eval_results) == len(read.scores)


def test_card_commands_refuse_what_they_cannot_do(folder, card, tmp_path, capsys):
    def fails(*arguments):
        assert main(["card", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    assert "There is neither at" in fails("check", tmp_path / "none")
    assert "`card check` only reads" in fails("check", folder, "--license", "mit")
    assert "Did you mean 'finetune'?" in fails("write", folder, "--relation", "finetuned")
    assert "is not one (" in fails("write", folder, "--results", card)
    card.write_text("---\n: [\n---\n")
    assert "cannot be read: The front matter is no YAML" in fails("write", folder, "--license", "mit")


# What the check says


def test_check_prints_problems_and_exits_with_one(folder, card, capsys):
    assert main(["card", "check", str(folder)]) == 0
    assert capsys.readouterr().out == ""
    card.write_text(card.read_text().replace("license: mit\n", ""))
    assert main(["card", "check", str(folder)]) == main(["card", "check", str(card)]) == 1
    assert capsys.readouterr().out == f"{NO_LICENSE}\n" * 2
    assert main(["card", "write", str(folder), "--language", "en"]) == 0
    assert capsys.readouterr().out == f"{card}\nstill: {NO_LICENSE}\n"


def test_a_folder_without_a_card(tmp_path):
    assert card_problems(tmp_path) == [f"{tmp_path} has no README.md. Write one: blip3o-hf card write {tmp_path}."]
    with pytest.raises(NotADirectoryError, match="A card is checked in the folder that it describes"):
        card_problems(tmp_path / "none")


TOKEN = "hf_" + "AbCdEfGh" * 4


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("---\nlibrary", "library", "The card has no front matter. Begin it with a line `---`"),
        ("license: mit", "license: [", "The front matter is no YAML (line "),
        (r"---\n[\s\S]*?\n---\n", "---\njust words\n---\n", "must be keys with values. It is a str."),
        ("library_name: blip3o_hf\n", "", "`library_name` is missing from the front matter. State it: library_name:"),
        ("pipeline_tag: .*\n", "", "`pipeline_tag` is missing from the front matter."),
        (r"tags:\n(- .*\n)+", "", "`tags` is missing from the front matter."),
        (r"tags:\n(- .*\n)+", "tags: blip3o\n", "`tags` must be a list of words. It is 'blip3o'."),
        ("license: mit", "license: unknown", "`license` is `unknown`. Nobody may use weights without a licence"),
        ("license: mit", "license: MIT License", "in small letters. Got 'MIT License'. Example: apache-2.0."),
        ("license: mit", "license: other", "`license: other` needs `license_name` and `license_link`."),
        ("license: mit", "license: mit\nbase_model: /data/model", "`base_model` must name repositories of the Hub."),
        (
            "license: mit",
            "license: mit\ndatasets: [a/b/c]",
            "`datasets` must name repositories of the Hub. Got 'a/b/c'",
        ),
        ("license: mit", "license: mit\nlanguage: English", "`language` must be codes of two or three letters."),
        (
            "license: mit",
            "license: mit\nbase_model: a/b\nbase_model_relation: son",
            "must be one of finetune, adapter",
        ),
        ("license: mit", "license: mit\nbase_model_relation: finetune", "`base_model` is missing, and `base_model_re"),
        ("\n# part\n", "\n", "The card has no title. Write `# NAME`"),
        ("```python", "```", "The card has no quickstart. Show how to use the weights"),
        ("part = ", "part = = ", "Python block 1 of the card does not parse: invalid syntax, line 3."),
        ("## Limits and biases", "## Other", "The card does not say what it cannot do. Add a section `## Limits`."),
        (r"(## Limits and biases\n)[\s\S]*?(## Licence)", r"\1\n\2", "The card does not say what it cannot do."),
        (r"## Citation[\s\S]*", "", "The card does not say how it is to be cited. Add a section `## Citation`."),
        ("## Use", "![a](a.png)\n\n## Use", "The card shows the picture a.png, and there is no such file beside it."),
        ("## Use", '<img width="3" src="b.png">\n\n## Use', "The card shows the picture b.png, and there is no such"),
        ("license: mit", "license: mit\nwidget: [{output: {url: c.png}}]", "The card shows the picture c.png, and"),
        ("## Use", "[more](../more.md)\n\n## Use", "The card links to ../more.md, and there is no such file"),
        ("## Use", f"My token is {TOKEN}.\n\n## Use", "looks like an access token (hf_AbC...). Delete it, and revoke"),
        ("license: mit", "license: mit\nmodel-index: [{name: a}]", "`model-index` cannot be read: it must be a list"),
        (
            "## Limits",
            "### Speed\n\n| a | 1.5 |\n| --- | --- |\n\n## Limits",
            "The results of 'Speed' must be marked.",
        ),
        (
            "## Limits",
            "### Both\n\nMeasured here, and reported by the authors.\n\n| a | 1 |\n| --- | --- |\n\n## Limits",
            "The results of 'Both' must be marked. Write either 'measured here' or 'reported by the authors'",
        ),
        (
            "## Limits",
            "### Hearsay\n\nReported by the authors.\n\n```text\na 1.5\n```\n\n## Limits",
            "The results of 'Hearsay' are reported by the authors, and no source is given. Link it.",
        ),
    ],
)
def test_every_defect_is_named(folder, card, old, new, problem):
    text, number = re.subn(old, new, card.read_text(), count=1)
    assert number == 1
    card.write_text(text)
    (found,) = card_problems(folder)
    assert problem in found and found.endswith(".") and TOKEN not in found


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            r"- command: .*\n",
            "",
            "The results of 'Benchmark' are measured here, and no line `- command: ...` tells how.",
        ),
        (r"- settings: .*\n", "- settings:\n", "are measured here, and no line `- settings: ...` tells how."),
        (r"- versions: .*\n", "", "are measured here, and no line `- versions: ...` tells how."),
        (r"- date: .*\n", "", "are measured here, and no line `- date: ...` tells how."),
        (
            "value: 0.5\n",
            "value: 0.9\n",
            "`model-index` says 0.9 for 'colors' of Benchmark, and no row of results that",
        ),
        (r"\| colors \| 0.250", "| shapes | 0.250", "`model-index` says 0.25 for 'colors' of Benchmark, and no row"),
        ("name: colors, measured here", "name: colors", "in `model-index` must be marked. End its `name` with"),
        (
            "name: colors, measured here",
            "name: colors, reported by the authors",
            "is reported by the authors, and has no source. Add `source: {url: ...}`.",
        ),
    ],
)
def test_results_must_be_told_whole_and_the_same_everywhere(folder, card, old, new, problem):
    update_card(card, evaluations=[evaluation()])
    card.write_text(re.sub(old, new, card.read_text(), count=1))
    found = card_problems(folder)
    assert problem in found[0] and len(found) <= 2


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            lambda text: text.replace("0.5", "0.7"),
            ".eval_results/ says 0.7 for owner/benchmark (colors, measured here)",
        ),
        (lambda text: "- value: 1\n", ".eval_results/owner--benchmark.yaml cannot be read (KeyError"),
        (lambda text: "[]", "`model-index` says 0.25 for owner/benchmark (colors, measured here), and .eval_results/"),
        (lambda text: f"{text}# {TOKEN}\n", "shows what looks like an access token"),
    ],
)
def test_entries_must_say_what_the_card_says(folder, card, change, problem):
    update_card(card, evaluations=[evaluation(dataset="owner/benchmark")])
    path = folder / ".eval_results" / "owner--benchmark.yaml"
    path.write_text(change(path.read_text()))
    assert problem in "\n".join(card_problems(folder))
    update_card(card)
    assert card_problems(folder) == []


def test_an_adapter_must_name_its_base_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    write_card(tmp_path, Origin(license={"license": "mit"}))
    (problem,) = card_problems(tmp_path)
    assert "`base_model` is missing, and the folder holds an adapter." in problem
    update_card(tmp_path / "README.md", base_model=["owner/model"], base_model_relation="adapter")
    assert card_problems(tmp_path) == []
    assert 'from_pretrained("owner/model")' in (tmp_path / "README.md").read_text()


def test_headings_inside_code_are_no_headings():
    text = "a\n## One\n```\n## no\n# no\n```\n### Sub\n## Two\n"
    assert [heading for heading, _ in sections(text, 2)] == ["", "One", "Two"]
    assert "".join(own for _, own in sections(text, 2)) == text


def test_what_tells_about_a_machine_is_cut():
    assert public_name("/home/me/model") == "model"
    assert public_name("owner/name") == "owner/name" and public_name("runs/mine") == "runs/mine"


# The cards of this project


@pytest.mark.parametrize("path", MODEL_CARDS, ids=lambda path: path.stem)
def test_every_model_card_passes(path):
    assert card_file_problems(path) == []
    headings = [heading for heading, _ in sections(path.read_text(), 2) if heading]
    assert tuple(headings) == SECTIONS
    assert ModelCardData(**front_matter(path)).license


def test_the_template_has_the_sections_of_the_model_cards(saved):
    headings = [heading for heading, _ in sections((saved / "README.md").read_text(), 2) if heading]
    assert tuple(headings) == SECTIONS


def test_what_the_authors_report_is_not_said_to_be_measured():
    for name in ("blip3o-8b", "blip3o-4b"):
        path = ROOT / "model_cards" / f"{name}.md"
        results = ModelCard.load(path).data.eval_results
        assert len(results) == 12 and all(result.source_url for result in results)
        assert "Measured here" not in path.read_text() and "Nothing was measured here." in path.read_text()


def test_the_tiny_card_s_quickstart_runs(tmp_path):
    names = run_quickstart((ROOT / "model_cards" / "blip3o-tiny.md").read_text(), tmp_path)
    assert names["image"].size == (64, 64)


def test_the_card_of_a_fine_tune_says_what_it_was_made_from_and_what_was_measured():
    path = ROOT / "model_cards" / "blip3o-tiny-digits.md"
    data = front_matter(path)
    assert (data["base_model"], data["base_model_relation"]) == ("blip3o-tiny", "finetune")
    results = ModelCard.load(path).data.eval_results
    assert {result.metric_name.rpartition(", ")[2] for result in results} == {"measured here"} and len(results) == 11
    assert results[0].metric_value == 1.0 and f"| overall | {Rate(200, 200)} | 200 |" in path.read_text()
    assert "- command: `python benchmarks/digits.py`\n" in path.read_text()


@pytest.mark.parametrize("name", ["blip3o-8b", "blip3o-4b", "blip3o-tiny-digits"])
def test_the_code_of_cards_without_weights_here_runs_on_the_tiny_weights(tmp_path, name, capsys):
    text = (ROOT / "model_cards" / f"{name}.md").read_text()
    imported = re.findall(r"^from blip3o_hf import (.*)$", text, re.MULTILINE)
    assert {word for line in imported for word in line.split(", ")} <= set(blip3o_hf.__all__)
    for code in code_blocks(text, "python"):
        ast.parse(code)
    names = run_quickstart(text.replace(f'"{name}"', repr(TINY)).replace('"cuda"', '"cpu"'), tmp_path)
    assert names["image"].size == (64, 64)
    assert bool(capsys.readouterr().out.strip()) == ("print(" in text)


def test_a_card_that_begins_with_a_mark_of_windows_is_a_card(tmp_path):
    path = tmp_path / "README.md"
    path.write_bytes("\ufeff---\nlicense: mit\n---\n# A painter of cafés\n\n## Training\n\nLong.\n".encode())
    assert Origin.of_card(path).training == "Long."
    update_card(path, license="apache-2.0")
    assert front_matter(path)["license"] == "apache-2.0" and "cafés" in path.read_text(encoding="utf-8")
