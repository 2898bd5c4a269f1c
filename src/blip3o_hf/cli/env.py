"""`blip3o-hf env`: the versions that a bug report needs."""

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version

EXAMPLES = """example:
  blip3o-hf env
"""

PACKAGES = (
    "blip3o-hf",
    "torch",
    "torchvision",
    "transformers",
    "diffusers",
    "accelerate",
    "datasets",
    "huggingface_hub",
    "safetensors",
    "peft",
    "trl",
    "deepspeed",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options."""


def run(arguments: argparse.Namespace) -> int:
    import torch

    print(f"platform: {platform.platform()}")
    print(f"python: {platform.python_version()}")
    for package in PACKAGES:
        try:
            print(f"{package}: {version(package)}")
        except PackageNotFoundError:
            print(f"{package}: not installed")
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    print(f"accelerator: {accelerator or 'none'}")
    print(f"threads: {torch.get_num_threads()}")
    return 0
