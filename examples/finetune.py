"""Fine-tune on a folder of images with captions: `python finetune.py photos/ --output runs/mine --steps 1500`.

The folder holds images and a `metadata.csv` with the columns `file_name` and `caption`, as the loader `imagefolder` of
the library `datasets` reads it.
"""

import argparse

import torch
from datasets import load_dataset

from blip3o_hf import Blip3oTrainer, Blip3oTrainingArguments
from blip3o_hf.training.callbacks import DrawPromptsCallback

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("data")
parser.add_argument("--model", default="blip3o-tiny", help="packaged name, folder or Hub id")
parser.add_argument("--output", default="runs/mine")
parser.add_argument("--steps", type=int, default=1500)
parser.add_argument("--batch-size", type=int, default=32)
parser.add_argument("--prompts", nargs="*", default=(), help="drawn whenever a checkpoint is written")
parser.add_argument("--resume", action="store_true")
arguments = parser.parse_args()

dataset = load_dataset("imagefolder", data_dir=arguments.data, split="train").train_test_split(0.1, seed=0)
trainer = Blip3oTrainer(
    arguments.model,
    Blip3oTrainingArguments(
        arguments.output,
        max_steps=arguments.steps,
        per_device_train_batch_size=arguments.batch_size,
        learning_rate=1e-3,
        muon_learning_rate=1e-2,
        ema_decay=0.995,
        save_steps=250,
        save_total_limit=2,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
    ),
    train_dataset=dataset["train"],
    eval_dataset=dataset["test"],
)
if arguments.prompts:
    trainer.add_callback(DrawPromptsCallback(trainer, arguments.prompts))
trainer.train(resume_from_checkpoint=arguments.resume)
print(trainer.evaluate())
trainer.save_model()
if trainer.is_world_process_zero():
    print(f'blip3o-hf generate "..." --model {arguments.output}')
