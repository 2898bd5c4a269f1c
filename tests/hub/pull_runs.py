"""Models pushed to a stand-in and opened from there, by every door; what `push_to_hub` of the classes leaves.

`python pull_runs.py OUT` writes what was drawn and found to `OUT/results.json`.
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import HfApi, snapshot_download
from peft import get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.doors.doors import DRAWING, READING
from tests.hub.carded import put_card
from tests.hub.standin import tell
from transformers import pipeline
from transformers.pipelines import any_to_any

from blip3o_hf import Blip3oForConditionalGeneration, Blip3oPipeline, packaged_model_path
from blip3o_hf.cli import main as blip3o_hf
from blip3o_hf.hub.cards import Origin, write_card
from blip3o_hf.hub.push import push_folder
from blip3o_hf.models.adapters import lora_config, save_lora
from blip3o_hf.training.feature_cache import FeatureCache, ShardWriter, write_index

API = HfApi()
PROMPT = "two red circles"
STEPS = 3
REPO = "tester/drawn"


def fingerprint(image) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


def drawn(pipe) -> str:
    """The picture of a pipeline of diffusers."""
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return fingerprint(pipe(PROMPT, generator=generator, num_inference_steps=STEPS).images[0])


def drawn_by_task(draw) -> str:
    """The picture of a pipeline of transformers."""
    return fingerprint(draw(PROMPT, seed=0, num_inference_steps=STEPS)["image"])


def weights(repo_id: str) -> dict[str, int]:
    tree = API.list_repo_tree(repo_id, recursive=True)
    return {entry.path: entry.size for entry in tree if entry.path.endswith(".safetensors")}


def write_version(folder: Path, decoder_scale: float, query_scale: float) -> Path:
    """The packaged model with other weights in its decoder and in its model."""
    shutil.copytree(packaged_model_path("blip3o-tiny"), folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["default_num_attempts"] = 1  # not every door looks at what it drew
    (folder / "model_index.json").write_text(json.dumps(index))
    put_card(folder)
    for name, scale, part in (
        ("decoder/diffusion_pytorch_model.safetensors", decoder_scale, "out"),
        ("model/model.safetensors", query_scale, "queries"),
    ):
        tensors = load_file(folder / name)
        chosen = [key for key in tensors if part in key]
        assert chosen, list(tensors)
        tensors |= {key: tensors[key] * scale for key in chosen}
        save_file(tensors, folder / name, {"format": "pt"})
    return folder


def revisions(out: Path) -> dict:
    """Two versions, whose models and decoders both differ; the older one by its tag, and by its commit."""
    first, second = write_version(out / "first", 1.0, 1.0), write_version(out / "second", 0.5, 0.0)
    push_folder(first, REPO)
    API.create_tag(REPO, tag="v1")
    push_folder(second, REPO)
    push_folder(first, REPO, revision="old")
    commit = API.list_repo_refs(REPO).tags[0].target_commit
    return {
        "first": drawn(Blip3oPipeline.from_pretrained(first)),
        "second": drawn(Blip3oPipeline.from_pretrained(second)),
        "of_first": {
            "Blip3oPipeline": drawn(Blip3oPipeline.from_pretrained(REPO, revision="v1")),
            "DiffusionPipeline": drawn(DiffusionPipeline.from_pretrained(REPO, revision="v1")),
            "pipeline": drawn_by_task(pipeline("text-to-image", model=REPO, revision="v1")),
            "pipeline of a commit": drawn_by_task(pipeline("text-to-image", model=REPO, revision=commit)),
            "pipeline of a branch": drawn_by_task(pipeline("text-to-image", model=REPO, revision="old")),
        },
    }


def told(found) -> str:
    """An answer, or what tells a picture from others."""
    return found if isinstance(found, str) else hashlib.sha256(found.tobytes()).hexdigest()


def doors(out: Path) -> dict:
    """The newest version, by every door of docs/doors.md and by its folder."""
    any_to_any.requires_backends = lambda *arguments: None  # asks for torchvision, which nothing behind it needs
    folder = str(out / "second")
    return {
        **{name: told(door(REPO)) for name, door in (DRAWING | READING).items()},
        "drawn from the folder": told(next(iter(DRAWING.values()))(folder)),
        "answered from the folder": told(next(iter(READING.values()))(folder)),
        "snapshot": told(next(iter(DRAWING.values()))(snapshot_download(REPO))),
        "command": blip3o_hf(["generate", PROMPT, "--model", REPO, "-o", str(out / "a.png"), "--steps", "1"]),
    }


def refusal(action) -> str:
    """The error that an action raises, or an empty text."""
    try:
        action()
    except ValueError as error:
        return str(error)
    return ""


def card_of(repo_id: str) -> str:
    return Path(API.hf_hub_download(repo_id, "README.md")).read_text()


def write_own_card(folder: Path, repo_id: str) -> None:
    """Change the card of a repository as people do, there."""
    folder.mkdir()
    text = card_of(repo_id).replace("## Use", "A person wrote this.\n\n![Mine](mine.png)\n\n## Use")
    (folder / "README.md").write_text(text)
    Image.new("RGB", (8, 8)).save(folder / "mine.png")
    API.upload_folder(repo_id=repo_id, folder_path=folder)


def classes(out: Path) -> dict:
    """What `push_to_hub` of pipeline, model and processor leaves."""
    pipe = Blip3oPipeline.from_pretrained(out / "first")
    results = {"local": drawn(pipe)}
    results["refused"] = [
        refusal(lambda: pipe.push_to_hub("tester/unlicensed")),
        refusal(lambda: pipe.save_pretrained(out / "refused", push_to_hub=True, repo_id="tester/unlicensed")),
        refusal(lambda: pipe.push_to_hub("tester/unlicensed", create_pr=True, license="mit")),
    ]
    results["of refused"] = API.repo_exists("tester/unlicensed")
    results["url"] = pipe.push_to_hub("pipe", private=True, license="apache-2.0")
    results["card"] = card_of("tester/pipe")
    write_own_card(out / "own", "tester/pipe")
    pipe.register_to_config(default_num_inference_steps=7)
    tell(API.endpoint, "fail", kind="resolve", status=503)  # a card that cannot be read is not one that is not there
    pipe.push_to_hub("tester/pipe", commit_message="Again")
    results["card of the repository"] = card_of("tester/pipe")
    pipe.save_pretrained(out / "saved", push_to_hub=True, repo_id="tester/saved", license="mit")
    results["card of the folder"] = [card_of("tester/saved"), (out / "saved" / "README.md").read_text()]
    pipe.model.push_to_hub("tester/model", commit_message="Model")
    pipe.processor.push_to_hub("tester/model")
    for name in ("pipe", "saved"):
        repo_id = f"tester/{name}"
        results[name] = {
            "drawn": drawn(Blip3oPipeline.from_pretrained(repo_id)),
            "by_task": drawn_by_task(pipeline("text-to-image", model=repo_id)),
            "weights": weights(repo_id),
            "files": [entry.path for entry in API.list_repo_tree(repo_id)],
        }
    results["private"] = API.model_info("tester/pipe").private
    features = pipeline("text-to-image", model="tester/model")(
        PROMPT, seed=0, num_inference_steps=STEPS, output_type="features"
    )["image_features"]
    local = pipeline("text-to-image", model=pipe.model, processor=pipe.processor)(
        PROMPT, seed=0, num_inference_steps=STEPS, output_type="features"
    )["image_features"]
    results["same_features"] = torch.equal(features, local)
    results["weights_of_model"] = weights("tester/model")
    results["bytes"] = {
        part: sum(parameter.nbytes for parameter in getattr(pipe, part).parameters()) for part in ("model", "decoder")
    }
    return results


def adapters(out: Path) -> dict:
    """A LoRA as one file and as PEFT leaves it, from the Hub and from its folder."""
    torch.manual_seed(0)
    base = Blip3oForConditionalGeneration.from_pretrained(out / "first")
    model = get_peft_model(base, lora_config(base, parts=("transformer",), rank=2))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    save_lora(model, out / "lora")
    model.save_pretrained(out / "peft")
    results = {"plain": drawn(Blip3oPipeline.from_pretrained(out / "first"))}
    for name in ("lora", "peft"):
        put_card(out / name, base_model="tester/drawn", base_model_relation="adapter")
        results[f"kind of {name}"] = push_folder(out / name, f"tester/{name}").folder.kind
        for source in (out / name, f"tester/{name}"):
            pipe = Blip3oPipeline.from_pretrained(out / "first")
            pipe.load_lora_weights(source)
            results[f"{name} from {'folder' if isinstance(source, Path) else 'hub'}"] = drawn(pipe)
    return results


def features(out: Path) -> dict:
    folder = out / "features"
    folder.mkdir()
    writer = ShardWriter(folder, "targets", 0, torch.float32, 4)
    for number in range(3):
        writer.add([number], torch.full((1, 2, 2), float(number)))
        writer.link([10 + number], [number])
        writer.flush()
    write_index(folder, "targets")
    (folder / "manifest.json").write_text('{"targets": {"dtype": "float32", "fingerprint": {}}}\n')
    write_card(folder, Origin(license={"license": "mit"}))
    report = push_folder(folder, "tester/computed")
    cache = FeatureCache(snapshot_download("tester/computed", repo_type="dataset"))
    return {
        "kind": report.folder.kind,
        "rows": [cache.read("targets", 10 + number).unique().tolist() for number in range(3)],
    }


def main(out: Path) -> None:
    torch.set_num_threads(1)
    results = {step.__name__: step(out) for step in (revisions, doors, classes, adapters, features)}
    (out / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
