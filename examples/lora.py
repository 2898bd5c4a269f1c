"""Train adapters on images with captions, and draw with them: `python lora.py photos/ "a red kite"`."""

import argparse

import torch

from blip3o_hf import Blip3oForConditionalGeneration, Blip3oPipeline, Blip3oTrainer, Blip3oTrainingArguments
from blip3o_hf.assets import resolve_model
from blip3o_hf.models.adapters import lora_config

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("data", help="folder, file or Hub name of images with captions (docs/data.md)")
parser.add_argument("prompt")
parser.add_argument("--model", default="blip3o-tiny", help="packaged name, folder or Hub id")
parser.add_argument("--output", default="runs/my-style")
parser.add_argument("--steps", type=int, default=500)
parser.add_argument("--batch-size", type=int, default=16)
arguments = parser.parse_args()

folder = resolve_model(arguments.model)
model = Blip3oForConditionalGeneration.from_pretrained(folder)
trainer = Blip3oTrainer(
    model,
    Blip3oTrainingArguments(
        arguments.output,
        max_steps=arguments.steps,
        per_device_train_batch_size=arguments.batch_size,
        learning_rate=1e-3,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
    ),
    train_dataset=arguments.data,
    peft_config=lora_config(model, parts=("transformer",), rank=8),
)
trainer.train()
trainer.save_model()

pipe = Blip3oPipeline.from_pretrained(folder)
pipe.load_lora_weights(arguments.output)
pipe(arguments.prompt).images[0].save(f"{arguments.output}/picture.png")
print(f"{arguments.output}/picture.png")
