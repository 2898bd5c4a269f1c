"""Draw prompts: `python text_to_image.py "two red circles" "a blue square left of a green triangle"`."""

import argparse

import torch

from blip3o_hf import Blip3oPipeline
from blip3o_hf.assets import resolve_model

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("prompts", nargs="+")
parser.add_argument("--model", default="blip3o-tiny", help="packaged name, folder or Hub id")
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()

pipe = Blip3oPipeline.from_pretrained(resolve_model(arguments.model))
pipe.to("cuda" if torch.cuda.is_available() else "cpu")
# Every picture has its own seed, so it is the same picture alone or together with others.
generators = [torch.Generator().manual_seed(arguments.seed + number) for number in range(len(arguments.prompts))]
output = pipe(arguments.prompts, generator=generators)
for number, (prompt, image) in enumerate(zip(arguments.prompts, output.images, strict=True)):
    image.save(f"{number}.png")
    print(f"{number}.png: {prompt}")
