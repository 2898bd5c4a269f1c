"""`blip3o-hf push`: a folder to the Hugging Face Hub."""

import argparse

EXAMPLES = """examples:
  blip3o-hf push runs/mine/generation/pipeline me/my-blip3o --dry-run
  blip3o-hf push runs/mine/generation/pipeline me/my-blip3o --private
  blip3o-hf push my-style-lora me/my-style --revision v2 --message "Trained longer"

Run `hf auth login` once before, with a write token. Interrupted, the same command sends only what is missing.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="folder of a pipeline, model, processor, LoRA or of precomputed features")
    parser.add_argument("repo_id", help="repository: owner/name, or name for your own account; created if needed")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", help="branch to push to, created if needed (default: main)")
    parser.add_argument("--message", help="commit message")
    parser.add_argument(
        "--dry-run", action="store_true", help="check the folder and print what would be uploaded; use no network"
    )


def run(arguments: argparse.Namespace) -> int:
    from ..hub.push import push_folder

    report = push_folder(
        arguments.folder,
        arguments.repo_id,
        private=True if arguments.private else None,
        revision=arguments.revision,
        commit_message=arguments.message,
        dry_run=arguments.dry_run,
    )
    print(report)
    print("nothing was sent (--dry-run)" if report.url is None else report.url)
    return 0
