"""What may be pushed: kinds of folders, and one clear error for everything else. No network is asked."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tests.hub.carded import put_card

from blip3o_hf.assets import packaged_model_path
from blip3o_hf.cli import main
from blip3o_hf.hub.folders import read_folder
from blip3o_hf.hub.push import PushError, push_folder

TOKEN = "hf_" + "A1b2" * 9


@pytest.fixture
def model(tmp_path) -> Path:
    """The smallest folder of a model."""
    folder = tmp_path / "model"
    folder.mkdir()
    put_card(folder)
    (folder / "config.json").write_text('{"model_type": "blip3o"}')
    save_file({"w": np.zeros(8, np.float32)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def pipeline_folder(tmp_path) -> Path:
    folder = tmp_path / "pipeline"
    shutil.copytree(packaged_model_path("blip3o-tiny"), folder)
    put_card(folder)
    return folder


def refused(folder, *texts):
    with pytest.raises(ValueError) as caught:
        read_folder(folder)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    for text in texts:
        assert text in message, message


def write(folder, name, content="x"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_files_go_up_weights_first_and_the_card_last(pipeline_folder):
    checked = read_folder(pipeline_folder)
    assert (checked.kind, checked.repo_type) == ("pipeline", "model")
    paths = [file.path for file in checked.files]
    assert all(path.endswith(".safetensors") for path in paths[:3])
    assert paths[-3:] == ["model.safetensors.index.json", "model_index.json", "README.md"]
    assert checked.size == sum(path.stat().st_size for path in pipeline_folder.rglob("*") if path.is_file())


def test_what_git_and_the_hub_keep_for_themselves_is_left_out(model):
    for name in (".git/config", ".cache/huggingface/download/x.lock", "__pycache__/a.pyc", ".DS_Store"):
        write(model, name)
    write(model, ".gitattributes")
    assert {file.path for file in read_folder(model).files} == {
        ".gitattributes",
        "README.md",
        "config.json",
        "model.safetensors",
    }


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        (".partial-x.safetensors", ["finished files alone", ".partial-x.safetensors", "Delete"]),
        ("model/.tmp/model.safetensors", ["finished files alone"]),
        ("model.safetensors.incomplete", ["finished files alone", "model.safetensors.incomplete"]),
        (".env", ["no hidden ones", "holds .env"]),
        ("optimizer.pt", ["not the state of its training", "optimizer.pt", "pipeline/"]),
        ("checkpoints/checkpoint-20/model.safetensors", ["not the state of its training"]),
        ("training_args.bin", ["not the state of its training", "training_args.bin"]),
        ("rng_state_0.pth", ["not the state of its training"]),
        ("pytorch_model.bin", ["safetensors alone", "pytorch_model.bin", "`save_pretrained`"]),
        ("decoder/weights.pt", ["safetensors alone", "decoder/weights.pt"]),
        ("features.pkl", ["safetensors alone", "any program"]),
        ("id_rsa", ["no keys, tokens or passwords", "id_rsa"]),
        ("token", ["no keys, tokens or passwords"]),
        ("deploy.pem", ["no keys, tokens or passwords"]),
        ("aws_credentials.ini", ["no keys, tokens or passwords"]),
    ],
)
def test_what_must_not_be_shared_is_named(model, name, texts):
    write(model, name)
    refused(model, str(model), *texts)


@pytest.mark.parametrize(
    "content",
    [
        f'{{"token": "{TOKEN}"}}',
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_" + "a" * 36,
    ],
)
def test_a_secret_inside_a_file_is_found_and_not_repeated(model, content):
    write(model, "notes/run.json", content)
    with pytest.raises(ValueError, match="No pushed file may hold a key or a token") as caught:
        read_folder(model)
    assert "notes/run.json" in str(caught.value) and content not in str(caught.value)


def test_the_token_in_use_is_found_whatever_its_form(model, monkeypatch):
    write(model, "recipe.yaml", "secret: short-token")
    assert read_folder(model).kind == "model"
    with pytest.raises(ValueError, match="No pushed file may hold"):
        push_folder(model, "me/model", token="short-token", dry_run=True)
    monkeypatch.setenv("HF_TOKEN", "short-token")
    with pytest.raises(ValueError, match="No pushed file may hold"):
        push_folder(model, "me/model", dry_run=True)


def test_a_folder_of_no_known_kind_is_refused(tmp_path, model):
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, "it holds nothing")
    with pytest.raises(FileNotFoundError, match=r"A push needs a folder\. There is none at"):
        read_folder(tmp_path / "none")
    (model / "model.safetensors").unlink()
    refused(model, "with its weights as safetensors", "README.md, config.json")
    run = tmp_path / "run"
    write(run, "pipeline/model_index.json", "{}")
    write(run, "curves.png")
    refused(run, f"There is a pipeline in {run / 'pipeline'}: push that.")


def test_a_run_is_not_pushed_with_its_pipeline_beside_the_same_weights(model):
    write(model, "pipeline/model_index.json", "{}")
    refused(model, "Weights are shared once", f"Push {model / 'pipeline'}.")


def test_an_index_that_names_missing_files_is_refused(model, pipeline_folder):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model.safetensors"}}
    write(model, "model.safetensors.index.json", json.dumps(index))
    refused(model, "must hold every file that it names", "names model-00001-of-00002.safetensors, which is not there")
    (pipeline_folder / "decoder/diffusion_pytorch_model.safetensors").unlink()
    refused(pipeline_folder, "model_index.json names decoder/*.safetensors, which is not there")
    shutil.rmtree(pipeline_folder / "decoder")
    refused(pipeline_folder, "model_index.json names decoder, which is not there")


def test_a_repository_that_carries_its_code_needs_it(pipeline_folder):
    path = pipeline_folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": ["own_pipeline", "Blip3oPipeline"]}))
    refused(pipeline_folder, "model_index.json names own_pipeline.py, which is not there")
    write(pipeline_folder, "own_pipeline.py")
    assert read_folder(pipeline_folder).kind == "pipeline"


def test_features_need_their_index_and_all_shards(tmp_path):
    folder = tmp_path / "features"
    folder.mkdir()
    write(folder, "manifest.json", '{"targets": {}}')
    refused(folder, "is none of them: it holds manifest.json")
    names = {"names": json.dumps(["targets-0000-000000.safetensors"])}
    index = {"addresses": np.zeros(2, np.int64), "contents": np.zeros(1, np.int64)}
    save_file(index, folder / "index-targets.safetensors", names)
    refused(folder, "index-targets.safetensors names targets-0000-000000.safetensors, which is not there")
    save_file({"values": np.zeros((1, 4), np.float32)}, folder / "targets-0000-000000.safetensors")
    refused(folder, "A pushed dataset needs a card that says what it is", f"blip3o-hf card write {folder}")
    assert main(["card", "write", str(folder)]) == 0
    refused(
        folder, "A pushed dataset needs a card that says what it is", "`license` is missing", "Complete it and push"
    )
    assert main(["card", "write", str(folder), "--license", "mit"]) == 0
    assert (read_folder(folder).kind, read_folder(folder).repo_type) == ("features", "dataset")


def test_damaged_weights_are_refused(model):
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    refused(model, "must be whole safetensors files", str(path), "Save or download it again")


def test_links_to_folders_are_refused_and_links_to_files_followed(model, tmp_path):
    moved = model.rename(tmp_path / "moved")
    model.mkdir()
    for path in moved.iterdir():
        (model / path.name).symlink_to(path)  # as in the cache of the Hub
    assert read_folder(model).size == read_folder(moved).size
    (model / "decoder").symlink_to(moved, target_is_directory=True)
    refused(model, "decoder is a link to a folder or to nothing")


def test_a_lora_is_known_by_its_tensors_whatever_its_name(model):
    lora = {"transformer.layers.0.attn1.to_q.lora_A.weight": np.zeros(4, np.float32)}
    save_file(lora, model / "style.safetensors")
    assert read_folder(model).kind == "model"
    (model / "model.safetensors").unlink()
    assert read_folder(model).kind == "LoRA"


def test_a_card_must_say_what_the_model_is(model, capsys):
    card = (model / "README.md").read_text()
    (model / "README.md").write_text(re.sub(r"license: .*\n", "", card))
    refused(model, "A pushed model needs a card that says what it is", "license")
    (model / "README.md").unlink()
    assert main(["push", str(model), "me/model", "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("blip3o-hf push: A pushed model needs a card") and error.count("\n") == 1


@pytest.mark.parametrize("repo_id", ["a/b/c", "", "me/-x", "me/a--b", "me/a b"])
def test_a_repository_needs_a_name_that_the_hub_takes(model, repo_id):
    with pytest.raises(
        ValueError,
        match=re.escape(
            f"A repository is named owner/name or name, of letters, digits, '-', '_' and '.'. Got {repo_id!r}."
        ),
    ):
        push_folder(model, repo_id, dry_run=True)


def test_a_dry_run_needs_no_network(model):
    report = push_folder(model, "me/model", dry_run=True)
    assert report.url is None and report.private is None
    assert "to me/model, a model repository, branch main, public unless" in str(report)


def test_a_push_says_so_when_the_network_is_switched_off(model):
    with pytest.raises(PushError, match=r"folder for me/model.*offline mode is enabled.*HF_HUB_OFFLINE"):
        push_folder(model, "me/model")
