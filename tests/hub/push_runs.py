"""Pushes against a stand-in, one after the other; no torch is imported.

`python push_runs.py OUT` writes what they gave to `OUT/results.json`.
"""

import contextlib
import io
import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
from huggingface_hub import HfApi
from safetensors.numpy import save_file
from tests.hub.carded import put_card
from tests.hub.standin import READ, tell

from blip3o_hf.assets import packaged_model_path
from blip3o_hf.cli import main as blip3o_hf
from blip3o_hf.hub import push
from blip3o_hf.hub.cards import Origin, write_card
from blip3o_hf.hub.push import PushError, push_folder

API = HfApi()
WAITED: list[float] = []


def counted(action) -> dict[str, int]:
    """How many requests of each kind an action makes."""
    before = tell(API.endpoint, "counts")
    action()
    after = tell(API.endpoint, "counts")
    return {kind: after[kind] - before.get(kind, 0) for kind in after if after[kind] != before.get(kind, 0)}


def outcome(action) -> str:
    """The text of the error that an action raises, or an empty one."""
    try:
        action()
    except (PushError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def command(*arguments) -> tuple[int, str, str]:
    """Exit code, output and errors of `blip3o-hf`."""
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(io.StringIO()) as errors:
        code = blip3o_hf([str(argument) for argument in arguments])
    return code, output.getvalue(), errors.getvalue()


def files(repo_id: str, **where) -> dict[str, int]:
    tree = API.list_repo_tree(repo_id, recursive=True, **where)
    return {entry.path: entry.size for entry in tree if hasattr(entry, "size")}


def write_model(folder: Path, *names: str, value: float = 0.0) -> Path:
    """A model of 300 kB for each name, in shards with an index when there are several."""
    folder.mkdir(parents=True)
    put_card(folder)
    (folder / "config.json").write_text('{"model_type": "blip3o"}\n')
    weights = {}
    for number, name in enumerate(names):
        save_file({f"w{number}": np.full(75_000, value + number, np.float32)}, folder / name)
        weights[f"w{number}"] = name
    if len(names) > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    return folder


def write_features(folder: Path, num_shards: int) -> Path:
    folder.mkdir()
    names = [f"targets-0000-{number:06d}.safetensors" for number in range(num_shards)]
    for number, name in enumerate(names):
        save_file({"values": np.full((2, 4), number, np.float32)}, folder / name)
    index = {name: np.zeros(1, np.int64) for name in ("addresses", "shards", "rows", "contents")}
    save_file(index, folder / "index-targets.safetensors", {"names": json.dumps(names)})
    (folder / "manifest.json").write_text('{"targets": {"dtype": "float32", "fingerprint": {}}}\n')
    write_card(folder, Origin(license={"license": "mit"}))
    return folder


def whole_pipeline(out: Path) -> dict:
    folder = out / "pipeline"
    shutil.copytree(packaged_model_path("blip3o-tiny"), folder)
    put_card(folder)
    results = {"folder": str(folder)}
    dry: list = []
    call = ("push", folder, "tester/tiny", "--private", "--revision", "next", "--dry-run")
    results["requests_of_dry_run"] = counted(lambda: dry.append(command(*call)))
    results["dry_run"] = dry[0]
    results["pushed"] = command("push", folder, "tester/tiny", "--message", "First")
    results["files"] = files("tester/tiny")
    results["requests_of_repetition"] = counted(lambda: push_folder(folder, "tester/tiny"))
    (folder / "model_index.json").write_text((folder / "model_index.json").read_text() + "\n")
    results["requests_of_small_change"] = counted(lambda: push_folder(folder, "tester/tiny", revision="next"))
    results["branches"] = {
        branch.name: files("tester/tiny", revision=branch.name)["model_index.json"]
        for branch in API.list_repo_refs("tester/tiny").branches
    }
    API.create_tag("tester/tiny", tag="v1")
    results["to_a_tag"] = outcome(lambda: push_folder(folder, "tester/tiny", revision="v1"))
    return results


def other_kinds(out: Path) -> dict:
    processor = out / "processor"
    shutil.copytree(Path(packaged_model_path("blip3o-tiny")) / "processor", processor)
    lora = out / "lora"
    lora.mkdir()
    save_file({"transformer.x.lora_A.weight": np.zeros(4, np.float32)}, lora / "pytorch_lora_weights.safetensors")
    for folder in (processor, lora):
        put_card(folder, base_model="tester/tiny", base_model_relation="adapter")
    model = write_model(out / "model", "model.safetensors")
    reports = [push_folder(folder, f"kind-{folder.name}") for folder in (processor, lora, model)]
    features = write_features(out / "features", 5)
    push.FILES_PER_COMMIT = 3
    reports.append(push_folder(features, "tester/features", private=True))
    push.FILES_PER_COMMIT = 200
    tell(API.endpoint, "fail", kind="card", status=400)
    return {
        "reports": [[report.folder.kind, report.repo_id, report.folder.repo_type] for report in reports],
        "files": [list(files(report.repo_id, repo_type=report.folder.repo_type)) for report in reports],
        "private": [report.private for report in reports],
        "bad_card": outcome(lambda: push_folder(features, "tester/features")),
    }


def visibility(out: Path) -> dict:
    folder = out / "model"
    results = {"private": push_folder(folder, "tester/hidden", private=True).private}
    results["left_alone"] = push_folder(folder, "tester/hidden").private
    results["public_asked"] = outcome(lambda: push_folder(folder, "tester/hidden", private=False))
    results["private_asked"] = command("push", folder, "tester/kind-model", "--private")
    return results


def shards(out: Path) -> dict:
    names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    push_folder(write_model(out / "three", *names), "tester/shards")
    results = {"three": list(files("tester/shards"))}
    save_file({"kept": np.zeros(1, np.float32)}, out / "three" / "pytorch_lora_weights.safetensors")
    put_card(out / "three", base_model="tester/tiny", base_model_relation="adapter")
    push_folder(out / "three", "tester/shards")
    push_folder(out / "model", "tester/shards")
    results["one"] = list(files("tester/shards"))
    push_folder(out / "three", "tester/shards")
    results["three_again"] = list(files("tester/shards"))
    return results


def interruption(out: Path) -> dict:
    names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    folder = write_model(out / "cut", *names, value=7.0)
    tell(API.endpoint, "drop", kind="upload", nth=2, times=1000)
    results = {"error": outcome(lambda: push_folder(folder, "tester/cut"))}
    tell(API.endpoint, "calm")
    results["files_meanwhile"] = list(files("tester/cut"))
    results["requests"] = counted(lambda: push_folder(folder, "tester/cut"))
    results["files"] = list(files("tester/cut"))
    return results


def refusals(out: Path) -> dict[str, str]:
    """What a push says that the Hub turns down."""
    folder, texts = out / "model", {}
    for kind, status in (
        ("create", 401),
        ("create", 403),
        ("preupload", 401),
        ("preupload", 403),
        ("preupload", 404),
        ("commit", 401),
        ("commit", 403),
        ("commit", 409),
        ("commit", 412),
        ("commit", 413),
        ("upload", 403),
    ):
        if kind == "upload":
            write_model(out / "fresh", "model.safetensors", value=99.0)
        source = out / "fresh" if kind == "upload" else folder
        tell(API.endpoint, "fail", kind=kind, status=status)
        texts[f"{kind} {status}"] = outcome(lambda source=source: push_folder(source, "tester/refused", private=False))
        tell(API.endpoint, "calm")
    texts["reading token"] = outcome(lambda: push_folder(folder, "tester/kind-model", token=READ))
    texts["wrong token"] = outcome(lambda: push_folder(folder, "tester/kind-model", token="hf_" + "x" * 34))
    texts["reading token, private"] = outcome(lambda: push_folder(folder, "tester/new", token=READ, private=True))
    texts["other owner"] = outcome(lambda: push_folder(folder, "somebody/model"))
    texts["ignored"] = ignored(out)
    return texts


def ignored(out: Path) -> str:
    API.create_repo("tester/ignoring")
    API.upload_file(path_or_fileobj=b"config.json\n", path_in_repo=".gitignore", repo_id="tester/ignoring")
    return outcome(lambda: push_folder(out / "model", "tester/ignoring"))


def busy(out: Path) -> dict:
    """Pushes that the Hub makes wait: the error, what was waited, and what arrived."""
    results = {}
    faults = {
        "create 429": ("fail", {"kind": "create", "status": 429, "retry_after": 7}),
        "create 500": ("fail", {"kind": "create", "status": 500, "times": 3}),
        "preupload 503": ("fail", {"kind": "preupload", "status": 503, "times": 2}),
        "commit 429": ("fail", {"kind": "commit", "status": 429, "retry_after": 11}),
        "commit 503": ("fail", {"kind": "commit", "status": 503, "times": 4}),
        "commit 503 for ever": ("fail", {"kind": "commit", "status": 503, "times": 1000}),
        "commit 429 for ever": ("fail", {"kind": "commit", "status": 429, "times": 1000}),
        "upload cut": ("drop", {"kind": "upload", "times": 2}),
        "commit cut": ("drop", {"kind": "commit", "times": 2}),
        "answer lost": ("drop", {"kind": "commit", "when": "after"}),
        "cut for ever": ("drop", {"kind": "commit", "times": 1000}),
    }
    for number, (name, (method, fault)) in enumerate(faults.items()):
        folder = write_model(out / f"busy-{number}", "model.safetensors", value=100.0 + number)
        WAITED.clear()
        tell(API.endpoint, method, **fault)
        error = outcome(lambda folder=folder, number=number: push_folder(folder, f"tester/busy-{number}"))
        tell(API.endpoint, "calm")
        results[name] = {"error": error, "waited": list(WAITED), "files": list(files(f"tester/busy-{number}"))}
    return results


def main(out: Path) -> None:
    time.sleep = WAITED.append  # nobody waits; how long is written down
    steps = (whole_pipeline, other_kinds, visibility, shards, interruption, refusals, busy)
    results = {step.__name__: step(out) for step in steps}
    results["loaded"] = [name for name in ("torch", "transformers", "diffusers") if name in sys.modules]
    (out / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
