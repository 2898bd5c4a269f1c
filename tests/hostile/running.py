"""Runs a case in a process of its own, with limits, and says what came of it."""

import contextlib
import ctypes
import io
import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from .cases import OUTSIDE, SECRET, Case

MAX_SECONDS = 20
"""Of processor time."""
_PATIENCE = 10
"""A case that used no processor time for so many seconds waits for something."""
MAX_RESIDENT = 2 * 10**9
_MAX_ADDRESSES = 10 * 2**30
_MAX_FILE = 2**28
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CHANGING = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.truncate")
_PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.spawn")
_ADDRESSES = ("socket.connect", "socket.getaddrinfo", "socket.bind")


@dataclass(frozen=True)
class Outcome:
    """
    What came of a case.

    Args:
        code: what the command returned, or `None`.
        error: the error that ended it, as its type and its text; an error that the command line caught, too.
        origin: the function that raised it, where that is none of this package.
        is_clean: whether it is of a kind that the command line says in one line.
        is_caught: whether the command line did.
        result: of an expression, `not finite` where it holds numbers that are none.
        output, errors: what was printed.
        end: how the process ended, where not by itself: `hang`, `children left`, or a signal.
        resident, seconds: largest memory in bytes, and processor time.
        events: what it did that no case may do.
        new, changed: files in its folder, after it.
    """

    code: int | None = None
    error: tuple[str, str] | None = None
    origin: str = ""
    is_clean: bool = True
    is_caught: bool = False
    result: str = ""
    output: str = ""
    errors: str = ""
    end: str = ""
    resident: int = 0
    seconds: float = 0.0
    events: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)


class Runner:
    """
    Runs cases one after the other. Processes are forked from one that has imported the package.

    Args:
        folder: of all cases; what they leave elsewhere is looked for beside them.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.temporary = folder / "temporary"
        self.home = folder / "home"
        for each in (self.temporary, self.home):
            each.mkdir()
        _put_bait(folder / OUTSIDE)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["tests.hostile.preloaded"])

    def environment(self) -> dict[str, str]:
        """Of the process that cases are forked from."""
        folders = {"HOME": "", "TMPDIR": "", "HF_HOME": "huggingface", "MPLCONFIGDIR": "matplotlib"}
        folders["TORCHINDUCTOR_CACHE_DIR"] = "torch"
        found = {name: str(self.home / folder) for name, folder in folders.items()}
        path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), *map(str, sys.path)]))
        return {
            **found,
            "TMPDIR": str(self.temporary),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": path,
        }

    def run(self, case: Case, folder: Path) -> Outcome:
        """Run a case whose files lie in a folder."""
        before = _tree(folder)
        said = folder.with_name(f"{folder.name}-said")
        said.mkdir()
        with mock.patch.dict(os.environ, self.environment()):
            process = self.context.Process(target=_run_child, args=(case, folder, said, self.temporary))
            process.start()
        end = "hang" if _hangs(process) else ""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
            end = end or "children left"
        process.join()
        if not end and process.exitcode:
            end = "hang" if process.exitcode == -signal.SIGXCPU else f"ended with {process.exitcode}"
        report = said / "outcome.json"
        found: dict[str, Any] = json.loads(report.read_text()) if report.is_file() else {}
        output, errors = (_read(said / name) for name in ("stdout", "stderr"))
        after = _tree(folder)
        left = [f"{path} in the folder of temporary files" for path in sorted(os.listdir(self.temporary))]
        for path in self.temporary.iterdir():
            path.rename(said / path.name)
        return Outcome(
            **{**found, "error": tuple(found["error"]) if found.get("error") else None},
            output=output,
            errors=errors,
            end=end,
            new=[*sorted(after.keys() - before.keys()), *left],
            changed=sorted(path for path in before if after.get(path) != before[path]),
        )


def _hangs(process: multiprocessing.Process) -> bool:
    """Wait for a process to end, or to wait for something itself; of processor time it has a limit of its own."""
    before = -1.0
    for _ in range(30 * MAX_SECONDS // _PATIENCE):
        process.join(_PATIENCE)
        if process.exitcode is not None:
            return False
        with contextlib.suppress(OSError):
            ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
            used = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
            if used - before < 0.05:
                return True
            before = used
    return True


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


def _put_bait(folder: Path) -> None:
    from PIL import Image

    folder.mkdir()
    Image.new("RGB", (8, 8), "red").save(folder / f"{SECRET}.png")
    (folder / f"{SECRET}.txt").write_text("a caption of somebody else\n")
    (folder / f"{SECRET}.jsonl").write_text('{"image": "secret.png", "caption": "a caption of somebody else"}\n')


def _tree(folder: Path) -> dict[str, tuple]:
    """All that is in a folder, and how to see that it changed."""
    found = {}
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = os.path.join(parent, name)
            status = os.lstat(path)
            is_folder = os.path.isdir(path) and not os.path.islink(path)
            found[os.path.relpath(path, folder)] = (
                (status.st_mode,) if is_folder else (status.st_mode, status.st_size, status.st_mtime_ns, status.st_ino)
            )
    return found


# In the process of the case


def _run_child(case: Case, folder: Path, said: Path, temporary: Path) -> None:
    os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # it ends with the process that it was forked from
    for kind, limit in (
        (resource.RLIMIT_AS, _MAX_ADDRESSES),
        (resource.RLIMIT_CPU, MAX_SECONDS),
        (resource.RLIMIT_FSIZE, _MAX_FILE),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, max(limit, 2 * limit if kind == resource.RLIMIT_CPU else limit)))
    tempfile.tempdir = str(temporary)
    os.chdir(folder)
    (said / "typed").write_bytes(case.typed.encode("utf-8", "surrogateescape"))
    for number, name, flags in (
        (0, "typed", os.O_RDONLY),
        (1, "stdout", os.O_WRONLY | os.O_CREAT),
        (2, "stderr", os.O_WRONLY | os.O_CREAT),
    ):
        handle = os.open(said / name, flags, 0o644)
        os.dup2(handle, number)
        os.close(handle)
    sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False))
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False))
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False))
    guard = _Guard([folder, said, temporary, temporary.parent / "home"], folder.parent / OUTSIDE)
    start = time.process_time()
    with guard:
        found = _call(case)
    sys.stdout.flush()
    sys.stderr.flush()
    found |= {
        "events": guard.events,
        "seconds": time.process_time() - start,
        "resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    (said / "outcome.json").write_text(json.dumps(found))


def _call(case: Case) -> dict[str, Any]:
    from . import preloaded

    preloaded.torch.set_num_threads(1)  # its pool is made anew after a fork, which two threads must not do at once
    cli, caught = preloaded.blip3o_hf.cli, []

    def print_and_see(*words: object, **settings: Any) -> None:
        if error := sys.exc_info()[1]:
            caught.append(error)
        print(*words, **settings)  # noqa: T201

    try:
        if case.arguments:
            cli.print = print_and_see  # of the module alone: it prints an error where it has caught it
            code, result = cli.main(list(case.arguments)), None
        else:
            code, result = None, eval(case.expression, vars(preloaded))
    except SystemExit as error:
        return {"code": error.code if isinstance(error.code, int) else 1}
    except BaseException as error:
        traceback.print_exc()
        return _said(error)
    if caught:
        return {**_said(caught[0]), "code": code, "is_caught": True}
    return {"code": code, "result": "not finite" if preloaded.not_finite(result) else "finite"}


def _said(error: BaseException) -> dict[str, Any]:
    last = traceback.extract_tb(error.__traceback__)[-1]
    is_own = "/blip3o_hf/" in last.filename
    return {
        "error": (type(error).__name__, str(error).encode("utf-8", "backslashreplace").decode()),
        "origin": "" if is_own else f"{last.filename}:{last.lineno} {last.name}",
        "is_clean": isinstance(error, (ValueError, TypeError, OSError, ImportError)),
    }


class _Guard:
    """Notes what a case does that it must not: write elsewhere, read the bait, start a program, ask the network."""

    def __init__(self, allowed: list[Path], bait: Path):
        self.allowed = [str(path) for path in allowed]
        self.bait = os.path.realpath(bait)
        self.events: list[str] = []
        self.is_on = False

    def __enter__(self) -> None:
        sys.addaudithook(self._see)
        self.is_on = True

    def __exit__(self, *_: object) -> None:
        self.is_on = False

    def _see(self, event: str, arguments: tuple) -> None:
        if not self.is_on or not (event == "open" or event.startswith(("os.", "socket.", "subprocess.", "pty."))):
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, (str, bytes)):
                self._see_file(os.fsdecode(path), bool(flags & _WRITING))
        elif event in _CHANGING:
            for path in arguments[: 2 if event in ("os.rename", "os.link") else 1]:
                if isinstance(path, (str, bytes, os.PathLike)):
                    self._see_file(os.fsdecode(path), True)
        elif event in _PROGRAMS and "describe" not in arguments[1]:  # git, for the version of a checkout in a card
            self.events.append(f"started a program: {event} {arguments!r:.200}")
        elif event in _ADDRESSES and not (event == "socket.bind" and arguments[0].family == 1):
            self.events.append(f"asked the network: {event} {arguments!r:.200}")

    def _see_file(self, path: str, is_written: bool) -> None:
        self.is_on = False  # what follows opens no files, but may ask where links lead
        try:
            real = os.path.realpath(path)
        except (OSError, ValueError):
            return
        finally:
            self.is_on = True
        if real.startswith(self.bait):
            self.events.append(f"opened a file outside: {path}")
        elif is_written and real != os.devnull and not real.startswith(tuple(map(os.path.realpath, self.allowed))):
            self.events.append(f"wrote outside: {path}")
