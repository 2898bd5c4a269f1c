"""Bad images, given to the commands that read images."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from .cases import BAD, EITHER, OUTSIDE, REFUSED, RIGHT, SECRET, Case, Maker, command, damaged, pick

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF")
MODES = {"PNG": ("RGB", "RGBA", "L", "P", "1", "LA", "I;16"), "TIFF": ("RGB", "RGBA", "L", "CMYK", "YCbCr", "F", "I")}


def shown(rng: np.random.Generator, name: str, expected: tuple[str, ...] = EITHER, what: str = "") -> Case:
    """A command that reads an image of a name in its folder."""
    number = int(rng.integers(6))
    settings = {"what": what or name, "names": (os.fsencode(name).decode("utf-8", "backslashreplace"),)}
    settings["expected"] = expected
    if number == 0:
        sampling = "-o out.png --steps 1 --attempts 1 --no-plan"
        return command("edit", "make the circle blue", name, *sampling.split(), writes=("out.png",), **settings)
    if number == 1:
        words = "-o out.png --mode autoencoder"
        return command("reconstruct", name, *words.split(), writes=("out.png",), **settings)
    if number == 2:
        typed = f"/image '{name}'\n/ask what is it?\n"
        if "'" in name or "\n" in name:
            typed = "/quit\n"
        return command("chat --max-new-tokens 2", typed=typed, **settings)
    return command("describe", name, "what is it?", "--max-new-tokens", "2", **settings)


def encoded(rng: np.random.Generator, form: str | None = None, **settings) -> bytes:
    """A small valid image."""
    form = form or pick(rng, FORMATS)
    size = (int(rng.integers(8, 80)), int(rng.integers(8, 80)))
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    mode = pick(rng, MODES.get(form, ("RGB",)))
    image = image.convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, form, **settings)
    return buffer.getvalue()


def damaged_image(rng: np.random.Generator, folder: Path) -> Case:
    form = pick(rng, FORMATS)
    content, what = damaged(rng, encoded(rng, form))
    (folder / f"bad.{form.lower()}").write_bytes(content)
    return shown(rng, f"bad.{form.lower()}", what=f"{form} {what}")


def damaged_often(rng: np.random.Generator, folder: Path) -> Case:
    form = pick(rng, FORMATS)
    content = encoded(rng, form)
    for _ in range(3):
        content, _ = damaged(rng, content) if content else (content, "")
    (folder / "bad.png").write_bytes(content)
    return shown(rng, "bad.png", what=f"{form} damaged three times")


def whole_image(rng: np.random.Generator, folder: Path) -> Case:
    """Any format under any name."""
    form = pick(rng, ("PNG", "JPEG", "WEBP", "GIF", "BMP"))
    (folder / "good.jpg").write_bytes(encoded(rng, form))
    return shown(rng, "good.jpg", (RIGHT,), f"a whole {form}")


def no_image(rng: np.random.Generator, folder: Path) -> Case:
    """Another kind of file under an image's name."""
    kinds = {
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(was_run) (w) file closefile\nshowpage\n",
        "SVG": b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><svg>&b;</svg>',
        "HTML": b"<html><body>404 Not Found</body></html>",
        "pickle": b"\x80\x04cos\nsystem\n(S'touch was_run'\ntR.",
        "ZIP": b"PK\x03\x04" + bytes(200),
        "ELF": b"\x7fELF" + bytes(500),
        "text": b"not an image\n",
        "noise": rng.bytes(1000),
        "PPM": b"P6\n100000 100000\n255\n" + bytes(100),
        "MPO, FLI": b"\x00" * 4 + b"\x11\xaf" + bytes(200),
        "ICO": b"\0\0\1\0\1\0\0\0\0\0\1\0\x20\0\xff\xff\xff\x7f\x16\0\0\0" + bytes(40),
        "GIF head": b"GIF89a",
        "PNG head": b"\x89PNG\r\n\x1a\n",
    }
    kind = pick(rng, list(kinds))
    name = pick(rng, ("page.png", "page.jpg", "page.webp", "page.tiff", "page"))
    (folder / name).write_bytes(kinds[kind])
    return shown(rng, name, (REFUSED,), f"{kind} called {name}")


def chunk(kind: bytes, content: bytes) -> bytes:
    """Of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, color: int = 2) -> bytes:
    """A PNG of chunks."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def bomb(rng: np.random.Generator, folder: Path) -> Case:
    """Small files that ask for much."""
    side = int(rng.integers(9_000, 60_000))
    pixels = chunk(b"IDAT", zlib.compress(bytes(10**6)))
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3 * 10**7)))
    profile = chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(3 * 10**7)))
    gif = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0xF7, 0, 0) + bytes(768)
    gif += b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x08" + b"\xff" * 255 + b"\0;"
    bmp = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 200, 0, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(146)
    kinds = {
        f"a PNG of {side} x {side} pixels": png(side, side, pixels),
        f"a PNG of 2147483647 x {side} pixels": png(2**31 - 1, side, pixels),
        f"a PNG of 16 bits and {side} x {side} pixels": png(side, side, pixels, depth=16, color=6),
        f"a PNG of 1 x {side * 500} pixels": png(1, side * 500, pixels, color=0),
        "a PNG of 0 x 0 pixels": png(0, 0, pixels),
        "a PNG with 30 MB of text": png(8, 8, text, chunk(b"IDAT", zlib.compress(bytes(8 * 25)))),
        "a PNG with a large colour profile": png(8, 8, profile, chunk(b"IDAT", zlib.compress(bytes(8 * 25)))),
        "a PNG with a thousand texts": png(
            8, 8, *[chunk(b"tEXt", b"a\0" + bytes(1000))] * 1000, chunk(b"IDAT", zlib.compress(bytes(8 * 25)))
        ),
        "a GIF of 65535 x 65535 pixels": gif,
        f"a BMP of {side} x {side} pixels": bmp,
        f"a BMP of -{side} rows": bmp.replace(struct.pack("<ii", side, side), struct.pack("<ii", side, -side)),
    }
    what = pick(rng, list(kinds))
    (folder / "bomb.png").write_bytes(kinds[what])
    is_small = "text" in what or "profile" in what
    return shown(rng, "bomb.png", EITHER if is_small else (REFUSED,), what)


def strange_tiff(rng: np.random.Generator, folder: Path) -> Case:
    """Directories of a TIFF that lead to themselves, or ask for more than there is."""
    width, height = (pick(rng, (0, 1, 8, 65535, 2**31, 2**32 - 1)) for _ in range(2))
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, pick(rng, (1, 8, 16, 32, 64)))]
    entries += [(259, 3, 1, pick(rng, (1, 2, 5, 7, 8, 32773, 50000))), (262, 3, 1, int(rng.integers(9)))]
    entries += [(273, 4, pick(rng, (1, 1000, 2**31)), 8), (277, 3, 1, pick(rng, (1, 3, 4, 255)))]
    entries += [(278, 4, 1, pick(rng, (0, 1, 2**32 - 1))), (279, 4, 1, pick(rng, (0, 100, 2**32 - 1)))]
    content = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries))
    content += b"".join(struct.pack("<HHII", *entry) for entry in entries)
    content += struct.pack("<I", 8) + bytes(500)
    (folder / "strange.tif").write_bytes(content)
    return shown(rng, "strange.tif", what=f"a TIFF with the entries {entries}")


def strange_content(rng: np.random.Generator, folder: Path) -> Case:
    """Whole images of unusual shapes, frames and settings."""
    kind = pick(rng, ("long", "frames", "exif", "profile", "float", "integer", "one pixel", "text"))
    image, settings, form, expected = Image.new("RGB", (16, 16)), {}, "PNG", EITHER
    if kind == "long":
        image = Image.new("RGB", (int(rng.integers(200, 30_000)), 1))
        image = image.transpose(Image.Transpose.ROTATE_90) if rng.random() < 0.5 else image
    elif kind == "frames":
        form, more = "GIF", [Image.new("L", (8, 8), index % 256) for index in range(500)]
        settings = {"save_all": True, "append_images": more}
    elif kind == "exif":
        form, exif = "JPEG", Image.Exif()
        exif[0x0112] = pick(rng, (0, 3, 6, 8, 9, 65535))
        settings = {"exif": damaged(rng, exif.tobytes())[0]}
    elif kind == "profile":
        settings = {"icc_profile": rng.bytes(500)}
    elif kind == "float":
        form, image, expected = "TIFF", Image.fromarray(np.full((8, 8), np.nan, np.float32)), (REFUSED,)
    elif kind == "integer":
        values = rng.integers(-(2**31), 2**31, (8, 8)).astype(np.int32)
        form, image, expected = "TIFF", Image.fromarray(values), (REFUSED,)
    elif kind == "one pixel":
        image = Image.new(pick(rng, ("RGB", "RGBA", "L", "1", "P", "I;16")), (1, 1))
    else:
        info = PngImagePlugin.PngInfo()
        info.add_text("x" * 79, "y" * 10_000, zip=True)
        settings = {"pnginfo": info}
    image.save(folder / "strange.img", form, **settings)
    return shown(rng, "strange.img", expected, f"a strange {form}: {kind}")


def no_file(rng: np.random.Generator, folder: Path) -> Case:
    """What is no file of its own."""
    kind = pick(
        rng, ("pipe", "folder", "device", "link to a device", "loop", "broken link", "missing", "empty", "long")
    )
    name, path = "in.png", folder / "in.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        name = pick(rng, ("/dev/zero", "/dev/null", "/dev/stdin", "/proc/self/mem", "/proc/self/environ"))
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to("in.png")
    elif kind == "broken link":
        path.symlink_to(f"../{OUTSIDE}/none.png")
    elif kind == "empty":
        path.touch()
    elif kind == "long":
        name = "x" * int(rng.integers(256, 6000)) + ".png"
    case = shown(rng, name, (REFUSED,), f"{kind}: {name[:50]}")
    return case if kind != "long" else Case(**{**vars(case), "names": ("xxxx",)})


def strange_name(rng: np.random.Generator, folder: Path) -> Case:
    """A file that is no image, under a name that is hard to print."""
    name = pick(
        rng, ("a b.png", "-x.png", "a\nb.png", "\udcff.png", "%s{0}.png", "é\u202e.png", "\x1b[31m.png", "'.png")
    )
    (folder / os.fsencode(name).decode("utf-8", "surrogateescape")).write_bytes(rng.bytes(100))
    if name.startswith("-"):
        return command("describe", "--", name, what=name, names=(name,), expected=BAD)
    line = command("describe", name, "--max-new-tokens", "2", what=repr(name), names=(".png",), expected=BAD)
    return line


MAKERS: tuple[Maker, ...] = (
    damaged_image,
    no_image,
    damaged_often,
    bomb,
    damaged_image,
    strange_tiff,
    no_file,
    strange_content,
    damaged_image,
    strange_name,
    no_file,
    whole_image,
)
__all__ = ["MAKERS", "SECRET", "encoded"]
