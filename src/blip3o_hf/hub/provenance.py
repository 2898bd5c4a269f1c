"""The versions of code and libraries that made something, so that somebody else can make it again."""

import platform
import subprocess
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .. import __version__

LIBRARIES = ("torch", "transformers", "diffusers", "accelerate", "peft", "safetensors", "huggingface_hub")
_CHECKOUT = Path(__file__).resolve().parents[3]


def code_version() -> str:
    """
    Version of this package and, where it runs from a git checkout of its own, the commit.

    Returns:
        `str`, such as `0.1.0` or `0.1.0, commit 1f2e...`; `-dirty` after a commit says that files were changed.
    """
    commit = _commit() if (_CHECKOUT / ".git").exists() else ""
    return f"{__version__}, commit {commit}" if commit else __version__


@cache
def _commit() -> str:
    """Empty where git is not installed, or will not read this checkout."""
    command = ["git", "-C", str(_CHECKOUT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def versions() -> dict[str, str]:
    """Versions of this package, of Python and of the libraries that are installed, by name."""
    found = {"blip3o_hf": code_version(), "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def now() -> str:
    """The present moment as `2026-01-31T12:00:00Z`."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def public_name(name_or_path: str) -> str:
    """A Hub id or a relative path as it is; of an absolute path, which tells about a machine, its last part."""
    return Path(name_or_path).name if Path(name_or_path).is_absolute() else name_or_path
