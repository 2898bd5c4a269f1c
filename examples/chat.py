"""A conversation in which the model answers, draws and edits: `python chat.py`."""

import argparse

from blip3o_hf import Blip3oChat, Blip3oPipeline
from blip3o_hf.assets import resolve_model

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="blip3o-tiny", help="packaged name, folder or Hub id")
arguments = parser.parse_args()

chat = Blip3oChat(Blip3oPipeline.from_pretrained(resolve_model(arguments.model)))
for text in ("draw a red circle and a blue square", "how many objects are there?", "make the circle green"):
    reply = chat.send(text)
    print(f"> {text}")
    if reply.image is not None:
        name = f"turn-{len(chat.messages)}.png"
        reply.image.save(name)
        print(f"  [{name}]")
    if reply.text:
        print(f"  {reply.text}")
