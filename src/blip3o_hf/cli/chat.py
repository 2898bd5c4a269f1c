"""`blip3o-hf chat`: a conversation in words and pictures."""

import argparse
import shlex
import sys
from pathlib import Path

from ..files import check_can_write
from .files import open_picture, save_picture
from .models import add_model_argument, add_sampling_arguments, load_pipeline, note_unknown_words, sampling_of

EXAMPLES = """examples:
  blip3o-hf chat
  blip3o-hf chat --open talk --save talk
  printf '/draw a red circle\\nwhat color is the circle?\\n/edit make the circle blue\\n' | blip3o-hf chat

in the conversation:
  any words             say them; the model answers, or draws where it was trained to choose
  /draw PROMPT          draw a picture             /plan PROMPT    write what to draw, then draw it
  /edit INSTRUCTION     change the last picture    /image FILE     show a picture with the next turn
  /ask QUESTION         get words                  /forget N       drop the N oldest turns
  /quit                 end, as the end of input does
"""
COMMANDS = ("ask", "draw", "edit", "forget", "image", "plan", "quit")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--open", default=None, metavar="FOLDER", help="go on with a saved conversation")
    parser.add_argument("--save", default=None, metavar="FOLDER", help="save the conversation here after every turn")
    parser.add_argument(
        "--pictures", default=".", metavar="FOLDER", help="where drawn pictures are written (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="picture i is drawn with seed + i (default: %(default)s)")
    add_sampling_arguments(parser)
    parser.add_argument(
        "--max-new-tokens", type=int, default=256, help="longest answer in tokens (default: %(default)s)"
    )
    add_model_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    folder = Path(arguments.pictures)
    if not folder.is_dir():
        raise FileNotFoundError(f"--pictures must be a folder. There is none at {folder.absolute()}. Create it first.")
    check_can_write(folder, "--pictures")
    if arguments.save:
        check_can_write(arguments.save, "--save")
    pipe = load_pipeline(arguments.model)
    pipe.set_progress_bar_config(disable=True)

    from ..pipelines.chat import Blip3oChat

    chat = Blip3oChat.load(arguments.open, pipe) if arguments.open else Blip3oChat(pipe)
    conversation = _Conversation(chat, arguments, folder)
    is_asked = sys.stdin.isatty()
    if is_asked:
        print("Say something, or /draw, /plan, /edit, /image, /ask, /forget, /quit.")
    for line in _lines(is_asked):
        try:
            if not conversation.turn(line):
                break
        except (ValueError, TypeError, OSError) as error:
            if not is_asked:
                raise
            print(error)
        if arguments.save:
            chat.save(arguments.save)
    return 0


def _lines(is_asked: bool):
    """What the user types, or what comes in by a pipe."""
    if not is_asked:
        try:
            yield from sys.stdin
        except UnicodeDecodeError as error:
            part = error.object[max(0, error.start - 20) : error.start + 20]
            raise ValueError(f"A turn must be text in {error.encoding}. Got {part!r}. Write it in that.") from error
        return
    while True:
        try:
            yield input("> ")
        except EOFError:
            return


class _Conversation:
    """Lines of a user as turns of a chat."""

    def __init__(self, chat, arguments: argparse.Namespace, folder: Path):
        self.chat = chat
        self.arguments = arguments
        self.folder = folder
        self.shown: list = []

    def turn(self, line: str) -> bool:
        """Do what a line says, and print what comes of it; false where it ends the conversation."""
        line = line.strip()
        if not line:
            return True
        command, _, rest = line[1:].partition(" ") if line.startswith("/") else ("", "", line)
        if line.startswith("/") and command not in COMMANDS:
            raise ValueError(f"There is no /{command}. Available: {', '.join(f'/{name}' for name in COMMANDS)}.")
        if command == "quit":
            return False
        if command == "image":
            self.shown += [open_picture(path) for path in shlex.split(rest)]
        elif command == "forget":
            if rest.strip() and not (rest.strip().isdecimal() and len(rest.strip()) < 10):
                raise ValueError(f"/forget takes a number of turns. Got {rest!r:.60}. Without one, all are dropped.")
            self.chat.forget(int(rest) if rest.strip() else None)
        else:
            self._say(command, rest)
        return True

    def _say(self, command: str, text: str) -> None:
        import torch

        from ..pipelines.checking import ACCEPTED

        seed = self.arguments.seed + sum(message["role"] == "assistant" for message in self.chat.messages)
        generator = torch.Generator().manual_seed(seed)
        sampling = sampling_of(self.arguments)
        if command == "plan":
            sampling["plan"] = True
        note_unknown_words(self.chat.pipe, text)
        length = {"max_new_tokens": self.arguments.max_new_tokens}
        if command in ("draw", "plan"):
            reply = self.chat.draw(text, self.shown, generator, **sampling)
        elif command == "edit":
            image = self.shown[-1] if self.shown else None
            reply = self.chat.edit(text, image, generator, **sampling)
        elif command == "ask":
            reply = self.chat.ask(text, self.shown, **length)
        else:
            reply = self.chat.send(text, self.shown, generator, sampling, **length)
        self.shown = []
        if reply.text:
            print(reply.text)
        if reply.plan:
            print(f"plan: {reply.plan}")
        if reply.image is not None:
            path = self._free_path()
            save_picture(reply.image, path)
            print(path)
            if reply.score is not None and reply.score < ACCEPTED:
                print(
                    f"note: {path} may not show what was asked for; it is the best of {reply.attempts} attempts",
                    file=sys.stderr,
                )

    def _free_path(self) -> Path:
        number = 1
        while (self.folder / f"picture-{number}.png").exists():
            number += 1
        return self.folder / f"picture-{number}.png"
