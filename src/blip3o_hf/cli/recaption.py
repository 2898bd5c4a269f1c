"""`blip3o-hf recaption`: long and short captions for pictures that you have."""

import argparse
from typing import TYPE_CHECKING

from .endpoints import PREFIX, add_endpoint_arguments, check_at_least_one, endpoint_model, open_endpoint
from .models import DEFAULT_MODEL, load_pipeline

if TYPE_CHECKING:
    from ..collection.captioners import Captioner

EXAMPLES = """examples:
  blip3o-hf recaption photos captioned --model blip3o-tiny --long "describe the image" --short ""
  blip3o-hf recaption "shards/{000..127}.tar" captioned --model openai:Qwen/Qwen2.5-VL-7B-Instruct \\
      --base-url http://localhost:8000/v1
  blip3o-hf data check captioned short_caption=short
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", help="a folder, file, glob, {000..127} range or Hub dataset with pictures")
    parser.add_argument("out", metavar="OUT", help="folder to write; the same command goes on where it stopped")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="further settings of the source")
    parser.add_argument("--format", default="auto", help="auto, imagefolder, json, webdataset or hub (default: auto)")
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help="a model of ours, or openai:MODEL (default: %(default)s)"
    )
    parser.add_argument("--long", metavar="TEXT", help="what is asked for the caption")
    parser.add_argument("--short", metavar="TEXT", help='what is asked for the short caption; "": none')
    parser.add_argument("--terms", default="", help="licence or terms of pictures and captions, for the manifests")
    add_endpoint_arguments(parser)
    parser.add_argument("--shard-size", type=int, default=500, help="pictures of a tar (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    check_at_least_one(arguments, "shard_size", "at_once")
    from tqdm import tqdm

    from ..collection.captioners import LONG, SHORT
    from ..collection.folder import opened
    from ..collection.recaption import Recaptioner
    from ..data.sources import open_source
    from ..hub.provenance import public_name
    from .data import source_settings

    given = {"long": LONG if arguments.long is None else arguments.long}
    given["short"] = SHORT if arguments.short is None else arguments.short
    if not given["long"].strip():
        raise ValueError('A picture needs a caption. --long is "". Write what is asked for it.')
    instructions = {kind: text for kind, text in given.items() if text.strip()}
    source_given = source_settings(arguments.data, arguments.format, arguments.overrides)
    source = open_source({**source_given, "reconstruct": True})
    with opened(arguments.out) as folder:
        captioner = _captioner(arguments)
        provenance = {
            "captioner": dict(captioner.settings),
            "instructions": instructions,
            "source": {
                key: public_name(value) if isinstance(value, str) else value for key, value in source_given.items()
            },
            "terms": arguments.terms,
        }
        settings = {**provenance, "shard_size": arguments.shard_size, "items": len(source)}
        folder.check_settings("captions", settings, free=["captioner.base_url"])
        folder.save_settings("captions", settings)
        with tqdm(total=len(source), desc="describing") as bar:
            recaptioner = Recaptioner(
                folder, source, captioner, instructions, arguments.shard_size, provenance, bar.update
            )
            progress = recaptioner.run()
    print(f"{progress.num_pairs} of {progress.num_prompts} pictures have captions, in {arguments.out}")
    for reason, count in sorted(progress.dropped.items()):
        print(f"  {count} dropped: {reason}")
    return 0 if progress.num_pairs else 1


def _captioner(arguments: argparse.Namespace) -> "Captioner":
    from ..collection.captioners import EndpointCaptioner, ModelCaptioner
    from ..hub.provenance import public_name

    if arguments.model.startswith(PREFIX):
        model = endpoint_model(arguments.model, "--model")
        return EndpointCaptioner(open_endpoint(arguments, "--model"), model, arguments.at_once)
    if arguments.base_url is not None:
        raise ValueError(
            f"An endpoint needs the name of its model. Got --base-url and --model {arguments.model}. Write --model "
            f"{PREFIX}NAME."
        )
    return ModelCaptioner(load_pipeline(arguments.model), public_name(arguments.model), arguments.at_once)
