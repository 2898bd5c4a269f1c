"""The page of a study: one HTML file without any other resource, for the server or with all pictures in it."""

import base64
import json
import os
from pathlib import Path

from ...checks import check_name
from ...files import expanded, written_whole
from .study import Study

TEMPLATE = Path(__file__).with_name("page.html")
SLOT = "/*STUDY*/null"
MAX_PAGE_BYTES = 300_000_000
MODES = ("server", "file")


def page_of(study: Study, mode: str) -> str:
    """
    The page as HTML.

    Args:
        study: that it asks about.
        mode: `server`, which asks the server for pictures and sends it answers; or `file`, with pictures inside, which
            keeps answers in the browser until they are saved as a file.

    Raises:
        ValueError: when all pictures in one file would be too much for a browser.
    """
    check_name("mode", mode, MODES)
    content = {**study.as_json(), "mode": mode, "pictures": _inlined(study) if mode == "file" else {}}
    text = json.dumps(content).replace("<", "\\u003c")  # no prompt can end the script
    before, after = TEMPLATE.read_text(encoding="utf-8").split(SLOT)
    return f"{before}{text}{after}"


def write_page(study: Study, path: str | os.PathLike) -> Path:
    """
    Write the page with all pictures in it, whole or not at all.

    Raises:
        ValueError: as `page_of`.
        OSError: when it cannot be written.
    """
    path = expanded(path)
    text = page_of(study, "file")
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _inlined(study: Study) -> dict[str, str]:
    names = sorted(study.images)
    size = sum(study.image_path(name).stat().st_size for name in names) * 4 // 3
    if size > MAX_PAGE_BYTES:
        raise ValueError(
            f"A page with all pictures may have {MAX_PAGE_BYTES:,} bytes, or browsers fail. This study has {size:,} "
            f"for {len(names)} pictures. Make it with a smaller --size or fewer prompts, or use `human-study serve`."
        )
    return {
        name: "data:image/png;base64," + base64.b64encode(study.image_path(name).read_bytes()).decode()
        for name in names
    }
