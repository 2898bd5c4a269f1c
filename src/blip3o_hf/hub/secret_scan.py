"""Keys, tokens and passwords, and programs in disguise: what a file holds that nobody means to share."""

import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import safe_open

from ..data.images import image_texts

SECRET_NAMES = re.compile(
    r"(^|/)([^/]*\.(pem|key|p12|pfx|ppk|kdbx|jks|keystore|gpg)|id_(rsa|dsa|ecdsa|ed25519)[^/]*|(hf_)?token(\.txt)?"
    r"|stored_tokens|[^/]*(credential|secret|password)[^/]*|kaggle\.json|service[-_]account[^/]*\.json"
    r"|[^/]*\.env(\.[^/]*)?|_?(netrc|npmrc|pypirc))$",
    re.IGNORECASE,
)
"""Names of files that hold secrets."""
PICKLES = re.compile(
    r"\.(bin|pt|pth|pt2|ckpt|pkl|pickle|cpickle|cloudpickle|dill|joblib|npy|npz|h5|hdf5|keras|msgpack|mar|marshal"
    r"|pyc|pyo)$",
    re.IGNORECASE,
)
"""Names of files that can run a program when they are loaded."""

# By how their makers let them begin, so that they are found. The library detect-secrets knows neither those of the Hub
# nor those of Google and Anthropic.
_TOKENS = re.compile(
    rb"hf_[A-Za-z0-9]{30,}|hf_oauth_[\w.-]{20,}|\bapi_org_[A-Za-z]{30,}"  # Hugging Face
    rb"|-----BEGIN [A-Z ]*PRIVATE KEY( BLOCK)?-----|PuTTY-User-Key-File-\d"
    rb"|\b(AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}\b"  # Amazon
    rb"|\bgh[pousr]_[A-Za-z0-9]{36}|\bgithub_pat_\w{22,}|\bgl(pat|ptt|dt|rt|soat|agent|oas|cbt)-[\w-]{20,}"
    rb"|(?<![\w-])sk-[\w-]{32,}|\bgsk_[A-Za-z0-9]{40,}|\bxai-[A-Za-z0-9]{40,}|\bnvapi-[\w-]{40,}|\br8_[A-Za-z0-9]{36,}"
    rb"|\bAIza[\w-]{35}|\bya29\.[\w-]{20,}|\bGOCSPX-[\w-]{20,}"  # Google
    rb"|\bxox[a-z]-[\w-]{10,}|\bxapp-\d-[\w-]{10,}|hooks\.slack\.com/services/[\w/]{20,}"
    rb"|\bnpm_[A-Za-z0-9]{36}|\bpypi-AgE[\w-]{50,}|\bdckr_pat_[\w-]{20,}|\bdop_v1_[a-f0-9]{64}|\bshp(at|ss|ca|pa)_\w{32}"
    rb"|\b[sr]k_live_[0-9a-zA-Z]{20,}|\bSG\.[\w-]{20,}\.[\w-]{20,}|\b\d{8,10}:AA[\w-]{33}\b|AccountKey=[\w+/=]{80,}"
    rb"|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"  # signed claims (JWT)
)
_BLOCK = 1 << 24
_OVERLAP = 4096


def has_secret(path: Path, name: str, token: str | None = None) -> bool:
    """
    Whether a file, or its name, holds what looks like a key or a token: in its bytes, also written in two bytes a
    letter; of safetensors in the header alone; of images in the compressed texts, too.

    Args:
        path: of the file.
        name: under which it would be shared.
        token (*optional*): one that must not be in it; those of well-known form are found without it.
    """
    wanted = token.encode() if token else None
    return any(
        _TOKENS.search(plain) is not None or (wanted is not None and wanted in plain)
        for text in (name.encode(), *_texts(path))
        for plain in {text, text.replace(b"\0", b"")}
    )


def _texts(path: Path) -> Iterator[bytes]:
    if path.suffix == ".safetensors":
        with safe_open(path, "np") as file:
            yield "\n".join([*file.keys(), *(file.metadata() or {}).values()]).encode()
        return
    with path.open("rb") as file:
        before = b""
        while block := file.read(_BLOCK):
            yield before + block
            before = block[-_OVERLAP:]  # a token may lie on the border
    yield from (text.encode() for text in image_texts(path))


def is_pickle(path: Path) -> bool:
    """Whether a file holds a pickle, whatever it is called: bare, or in an archive as PyTorch writes them."""
    with path.open("rb") as file:
        head = file.read(2)
        if len(head) == 2 and head[0] == 0x80 and 2 <= head[1] <= 5:  # its first instruction: the protocol
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"."  # its last one: stop
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(PICKLES.search(member) for member in archive.namelist())
