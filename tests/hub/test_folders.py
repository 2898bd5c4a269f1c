"""What may be pushed: kinds of folders, and one clear error for everything else. No network is asked."""

import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.numpy import save_file
from tests.hub.carded import put_card

from blip3o_hf.assets import packaged_model_path
from blip3o_hf.cli import main
from blip3o_hf.hub import secret_scan
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
        ("prod.env", ["no keys, tokens or passwords", "prod.env"]),
        ("conf/local.env.backup", ["no keys, tokens or passwords"]),
        ("SERVER.KEY", ["no keys, tokens or passwords"]),
        ("features.PKL", ["safetensors alone", "features.PKL"]),
        ("weights.PT", ["safetensors alone"]),
        ("scaler.dill", ["safetensors alone"]),
        ("model.keras", ["safetensors alone"]),
    ],
)
def test_what_must_not_be_shared_is_named(model, name, texts):
    write(model, name)
    refused(model, str(model), *texts)


SECRETS = [
    f'{{"token": "{TOKEN}"}}',
    "-----BEGIN OPENSSH PRIVATE KEY-----",
    "-----BEGIN PGP PRIVATE KEY BLOCK-----",
    "PuTTY-User-Key-File-3: ssh-ed25519",
    "AKIAIOSFODNN7EXAMPLE",
    "key = ASIAIOSFODNN7EXAMPLE",
    "ghp_" + "a" * 36,
    "glpat-" + "aB3-" * 5,
    "sk-" + "aB3d" * 12,
    "OPENAI_API_KEY=sk-proj-" + "aB3d_" * 12,
    "AIza" + "aB3-_" * 7,
    "xoxb-12345678901-abcdefghij",
    "sk_live_" + "aB3d" * 6,
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P",
]


@pytest.mark.parametrize("content", SECRETS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_secret_inside_a_file_is_found_and_not_repeated(model, content, encoding):
    write(model, "notes/run.json", content.encode(encoding))
    with pytest.raises(ValueError, match="No pushed file may hold a key or a token") as caught:
        read_folder(model)
    assert "notes/run.json" in str(caught.value) and content not in str(caught.value)


@pytest.mark.parametrize("content", SECRETS[3:6])
def test_a_secret_is_found_in_names_headers_and_compressed_texts(model, content):
    refuse = "No pushed file may hold a key or a token"
    named = write(model, f"notes-{content}.txt".replace("/", ""))
    refused(model, refuse)
    named.unlink()
    save_file({"a": np.zeros(1, np.float32)}, model / "extra.safetensors", {"command": f"train {content}"})
    refused(model, refuse, "extra.safetensors")
    (model / "extra.safetensors").unlink()
    texts = PngImagePlugin.PngInfo()
    texts.add_text("comment", content, zip=True)
    Image.new("RGB", (4, 4)).save(model / "grid.png", pnginfo=texts)
    assert content.encode() not in (model / "grid.png").read_bytes()
    refused(model, refuse, "grid.png")


def test_a_secret_on_the_border_of_two_blocks_is_found(model, monkeypatch):
    monkeypatch.setattr(secret_scan, "_BLOCK", 8192)
    write(model, "log.txt", b"x" * (8192 - 10) + b" " + TOKEN.encode() + b" " + b"y" * 9000)
    refused(model, "No pushed file may hold a key or a token", "log.txt")


@pytest.mark.parametrize(
    "content",
    [
        "sk-learn and task-specific-heads-of-the-model",
        "hf_hub_download",
        "AIza",
        "an eye, eyJ and eyJ.",
        "xox",
        TOKEN[:12],
    ],
)
def test_words_that_only_begin_like_secrets_pass(model, content):
    write(model, "notes.txt", content)
    assert read_folder(model).kind == "model"


def test_a_pickle_is_found_under_any_name(model):
    write(model, "weights.dat", pickle.dumps({"a": 1}))
    refused(model, "A pickle can run any program", "weights.dat")
    (model / "weights.dat").unlink()
    torch.save({"a": torch.zeros(2)}, model / "state.json")
    refused(model, "A pickle can run any program", "state.json")
    (model / "state.json").unlink()
    write(model, "empty.txt", b"")
    write(model, "short.txt", b"\x80")
    assert read_folder(model).kind == "model"


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


def test_links_may_point_into_the_folder_and_into_the_hubs_cache(model, tmp_path, monkeypatch):
    write(model, "notes.txt", "same")
    (model / "again.txt").symlink_to(model / "notes.txt")
    snapshot = tmp_path / "models--me--shapes" / "snapshots" / "0123"
    blobs = tmp_path / "models--me--shapes" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in model.iterdir():
        shutil.copy(path, blobs / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert read_folder(snapshot).size == read_folder(model).size
    cached = tmp_path / "cached"
    cached.mkdir()
    for path in blobs.iterdir():
        (cached / path.name).symlink_to(path)
    refused(cached, "must hold its files itself", "outside of it")
    monkeypatch.setattr("blip3o_hf.hub.folders.HF_HUB_CACHE", str(tmp_path))
    assert read_folder(cached).size == read_folder(model).size


def test_links_to_other_places_are_refused(model, tmp_path):
    private = write(tmp_path, "private.txt", "nobody else's")
    link = model / "notes.txt"
    link.symlink_to(private)
    refused(model, f"{link} is a link to {private}, outside of it", "delete the link")
    link.unlink()
    (model / "decoder").symlink_to(tmp_path, target_is_directory=True)
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
