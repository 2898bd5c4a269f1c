"""The results of a benchmark, each beside the others in one file."""

import argparse
import json
from typing import Any

from blip3o_hf.files import written_whole
from blip3o_hf.hub.provenance import now, versions


def keep(arguments: argparse.Namespace, key: str, value: Any) -> None:
    """Write what was measured into the results, beside the rest."""
    known = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {}
    known[key] = {"date": now(), "versions": versions(), "value": value}
    with written_whole(arguments.output) as temporary:
        temporary.write_text(json.dumps(known, indent=1) + "\n")
