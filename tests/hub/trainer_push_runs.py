"""Training with `push_to_hub=True` against a stand-in: `python trainer_push_runs.py OUT` writes `OUT/results.json`."""

import json
import sys
from pathlib import Path

import torch
from huggingface_hub import HfApi
from PIL import Image
from tests.hub.push_runs import counted, outcome
from tests.hub.standin import tell

from blip3o_hf import Blip3oPipeline, Blip3oTrainer, Blip3oTrainingArguments
from blip3o_hf.cli import main as blip3o_hf
from blip3o_hf.hub.reach import check_reachable

NAME = "tester/trained"


def main(out: Path) -> None:
    torch.set_num_threads(1)
    results = {}
    trainers = []

    def train() -> None:
        args = Blip3oTrainingArguments(
            str(out / "saved"),
            max_steps=2,
            save_steps=1,
            per_device_train_batch_size=1,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            push_to_hub=True,
            hub_model_id=NAME,
            hub_private_repo=True,
        )
        rows = [{"image": Image.new("RGB", (64, 64), "red"), "caption": "a red sheet"}]
        trainers.append(Blip3oTrainer("blip3o-tiny", args, train_dataset=rows))
        trainers[0].train()

    results["requests_of_training"] = counted(train)
    results["without_licence"] = outcome(trainers[0].push_to_hub)
    results["requests_of_push"] = counted(lambda: trainers[0].push_to_hub(license="apache-2.0"))
    info = HfApi().model_info(NAME)
    results["pushed"] = {"private": info.private, "files": [file.rfilename for file in info.siblings]}
    trainers[0].args.push_to_hub = False  # saving does no push, then
    trainers[0].save_model(str(out / "saved"))
    drawn = [
        Blip3oPipeline.from_pretrained(source)(
            "two red circles", plan=False, num_inference_steps=2, generator=torch.Generator().manual_seed(0)
        ).images[0]
        for source in (NAME, out / "saved")
    ]
    results["drawn"] = {"size": drawn[0].size, "is_equal": drawn[0].tobytes() == drawn[1].tobytes()}
    check_reachable(NAME)
    results["requests_of_mistake"] = counted(
        lambda: results.update(
            code=blip3o_hf(["generate", "a", "--model", "tester/trainde", "-o", str(out / "a.png")])
        )
    )
    tell(HfApi().endpoint, "calm")
    (out / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
