"""Peak memory of `blip3o-hf convert` on a published-layout repository of 3.5 GB. See README.md."""
# ruff: noqa: T201 - a script that reports on standard output

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from full_size import SIZES, Size, prepare_repository

NAME = "3gb"
_TINY = SIZES["tiny"]
# Parts of a size between tiny and full: a little over 3 GB in bf16, in files of at most half a gigabyte.
SIZE = Size(
    text={
        **_TINY.text,
        "vocab_size": 151668,
        "hidden_size": 1536,
        "num_hidden_layers": 18,
        "num_attention_heads": 12,
        "intermediate_size": 8960,
        "rope_parameters": SIZES["4b"].text["rope_parameters"],
    },
    vision={**SIZES["4b"].vision, "depth": 8, "fullatt_block_indexes": [7]},
    transformer={"dim": 1024, "num_layers": 12, "num_attention_heads": 16},
    unet=_TINY.unet,
    vae=_TINY.vae,
    tie_word_embeddings=False,
    feature_dim=_TINY.feature_dim,
    shard_bytes=500 * 10**6,
)


def convert(source: str, target: str) -> None:
    """Convert in this process, and print its memory after the imports and at the peak, and the seconds between."""
    from blip3o_hf.conversion.published import convert_published

    imported, start = psutil.Process().memory_info().rss, time.perf_counter()
    convert_published(source, target)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(imported, peak, time.perf_counter() - start)


def main() -> None:
    """Write the repository, convert it in a fresh process, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"), help="folder for 7 GB of files")
    work = parser.parse_args().work
    source = prepare_repository(work, NAME, SIZE)
    shards = [path.stat().st_size for path in source.glob("*.safetensors")]
    with tempfile.TemporaryDirectory(dir=work) as folder:
        command = [sys.executable, __file__, "--convert", str(source), f"{folder}/converted"]
        result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    imported, peak, seconds = map(float, result.stdout.split())
    extra = peak - imported
    print(
        f"source: {len(shards)} files of the model, {sum(shards) / 1e9:.2f} GB, the largest {max(shards) / 1e6:.0f} MB"
    )
    print(f"memory after the imports: {imported / 1e6:.0f} MB; at the peak: {peak / 1e6:.0f} MB")
    print(f"peak above the imports: {extra / 1e6:.0f} MB, {extra / max(shards):.2f} of the largest file")
    print(f"time: {seconds:.1f} s")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--convert"]:
        convert(*sys.argv[2:])
    else:
        main()
