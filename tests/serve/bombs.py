"""Pictures that unpack to far more than they weigh; run by itself, it prints what reading each of them costs."""

import base64
import io
import json
import struct
import time
import zlib
from collections.abc import Iterator

from PIL import Image

from g1_ray.serve.openai import read_picture
from g1_ray.serve.session import Refused


def png(width: int, height: int, *chunks: tuple[bytes, bytes], kind: int = 2, rows: bytes = b"") -> bytes:
    """A PNG by hand. `chunks`: (name, content) before the pixels; `rows`: the packed pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", rows or zlib.compress(bytes(1 << 20), 9)), (b"IEND", b"")]
    framed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    """A picture in a format."""
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def scans(data: bytes, num: int) -> bytes:
    """A progressive JPEG whose last scan comes `num` times more."""
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * num + data[-2:]


def bombs() -> Iterator[tuple[str, bytes]]:
    """Each by what it is."""
    zeros = zlib.compress(bytes(32 << 20), 9)
    yield "png, wide and high", png(50_000, 50_000, rows=zeros)
    yield "png, one line", png(4_000_000, 1, rows=zeros)
    yield "png, more pixels than it has room for", png(64, 64, rows=zeros)
    yield "png, texts", png(1, 1, *[(b"zTXt", b"k%d\0\0" % n + zlib.compress(bytes(1_000_000), 9)) for n in range(63)])
    yield "png, long text", png(1, 1, (b"zTXt", b"k\0\0" + zeros))
    yield "png, international text", png(1, 1, (b"iTXt", b"k\0\1\0\0\0" + zeros))
    yield "png, colour profile", png(1, 1, (b"iCCP", b"k\0\0" + zeros))
    yield "png, as large as a picture may be", saved(Image.new("RGBA", (1448, 1448)), "PNG")
    yield (
        "apng",
        saved(Image.new("RGB", (3000, 3000)), "PNG", save_all=True, append_images=[Image.new("RGB", (3000, 3000), 9)]),
    )
    big = saved(Image.new("L", (8, 8)), "JPEG")
    size = big.index(b"\xff\xc0") + 5
    yield "jpeg, wide and high", big[:size] + struct.pack(">HH", 65_000, 65_000) + big[size + 4 :]
    yield "jpeg, scans", scans(saved(Image.new("L", (1448, 1448)), "JPEG", progressive=True), 4_000)
    yield "jpeg, as large as a picture may be", saved(Image.new("RGB", (1448, 1448)), "JPEG", progressive=True)
    yield "webp, wide and high", saved(Image.new("RGB", (4000, 4000)), "WEBP")
    frames = [Image.new("RGB", (1400, 1400), n % 256) for n in range(10)]
    yield "webp, frames", saved(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    yield "spaces", b" " * (3 << 20)


def peak() -> int:
    """The most memory held since `forget`, in bytes."""
    with open("/proc/self/status") as status:
        return 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1])


def forget() -> None:
    """Counts the most memory from now on."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


if __name__ == "__main__":
    read_picture("data:image/png;base64," + base64.b64encode(saved(Image.new("RGB", (8, 8)), "PNG")).decode())
    for name, data in bombs():
        uri = "data:image/png;base64," + base64.b64encode(data).decode()
        forget()
        before, begun = peak(), time.process_time()
        try:
            read_picture(uri)
            said = ""
        except Refused as refused:
            said = refused.message
        seconds = time.process_time() - begun
        print(
            json.dumps({"name": name, "sent": len(uri), "seconds": seconds, "bytes": peak() - before, "said": said}),
            flush=True,
        )
