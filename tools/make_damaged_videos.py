"""Makes good videos and 16 kinds of damaged ones from them, all by program: nothing of them is kept in the repository.

    python tools/make_damaged_videos.py OUT --each 20 --seed 0

OUT then holds 16 * EACH good videos and as many damaged ones, under names that mix them, and OUT.json beside it says which is
which. Damage of pictures is damage that a decoder should see: no kind changes only metadata.
"""

import argparse
import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from phenaki.atomic import sha256
from phenaki.video import Video

SIZE, NUM_FRAMES, FPS = 64, 16, 8.0


def make_video(path: Path, seed: int) -> None:
    """Coloured waves that travel, with a little noise, so that every frame takes some bytes."""
    draw = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    speeds, waves, colours = draw.uniform(-1, 1, (3, 2)), draw.uniform(1, 6, (3, 2)), draw.uniform(60, 200, 3)
    frames = np.empty((NUM_FRAMES, SIZE, SIZE, 3), np.uint8)
    for frame in range(NUM_FRAMES):
        for colour in range(3):
            phase = waves[colour, 0] * rows + waves[colour, 1] * columns + frame / FPS * speeds[colour].sum()
            frames[frame, :, :, colour] = colours[colour] + 50 * np.sin(2 * np.pi * phase) + draw.normal(0, 3, phase.shape)
    Video(frames, FPS).save(path)


def atoms(data: bytes, start: int = 0, end: int | None = None) -> dict[str, tuple[int, int]]:
    """The atoms of an MP4 file between two places: name -> where it begins and ends."""
    found, at = {}, start
    end = len(data) if end is None else end
    while at + 8 <= end:
        length = struct.unpack_from(">I", data, at)[0]
        if length < 8:
            break
        found[data[at + 4 : at + 8].decode("latin-1")] = (at, at + length)
        at += length
    return found


def payload(data: bytes) -> tuple[int, int]:
    """Where the encoded frames begin and end, without the encoder's note about itself before the first one."""
    start, end = atoms(data)["mdat"]
    note = data.find(b"x264 - core", start, end)
    return (max(start + 8, start + 8 if note < 0 else data.find(b"\x80", note)) + 8, end)


def truncated(data: bytes, draw: random.Random) -> bytes:
    """Cut off somewhere in its frames."""
    start, end = payload(data)
    return data[: draw.randrange(start, end - 16)]


def bits_flipped(data: bytes, draw: random.Random) -> bytes:
    """Sixteen bits of its frames turned."""
    damaged, (start, end) = bytearray(data), payload(data)
    for _ in range(16):
        damaged[draw.randrange(start, end)] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def block_zeroed(data: bytes, draw: random.Random) -> bytes:
    """A sector of zeros among its frames."""
    start, end = payload(data)
    at = draw.randrange(start, end - 512)
    return data[:at] + bytes(512) + data[at + 512 :]


def bytes_doubled(data: bytes, draw: random.Random) -> bytes:
    """A block of its frames written twice, so that all after it stands too late."""
    start, end = payload(data)
    at, length = draw.randrange(start, end - 1024), draw.randrange(64, 1024)
    return data[: at + length] + data[at:]


def atoms_swapped(data: bytes, draw: random.Random) -> bytes:
    """Index and frames in the other order, so that the index points beside the frames."""
    places = atoms(data)
    order = [name for name in places if name not in ("moov", "mdat")]
    first = "mdat" if places["moov"] < places["mdat"] else "moov"
    order += [first, "moov" if first == "mdat" else "mdat"]
    return b"".join(data[slice(*places[name])] for name in order)


def cut_in_index(data: bytes, draw: random.Random) -> bytes:
    """Cut off in the middle of moov."""
    start, end = atoms(data)["moov"]
    return data[: draw.randrange(start + 16, end - 16)]


def no_video_stream(data: bytes, draw: random.Random) -> bytes:
    """Its track says that it is something other than a video, in a codec that is none."""
    return data.replace(b"vide", draw.choice([b"meta", b"soun", b"subt"]), 1).replace(b"avc1", b"mett", 2)


def no_frames(data: bytes, draw: random.Random) -> bytes:
    """The tables of the index name no frame at all."""
    damaged = bytearray(data)
    for name in (b"stts", b"stss", b"stsc", b"stco", b"ctts"):
        at = damaged.find(name)
        if at >= 0:
            damaged[at + 8 : at + 12] = bytes(4)
    at = damaged.find(b"stsz")
    damaged[at + 12 : at + 16] = bytes(4)
    return bytes(damaged)


def playlist(data: bytes, draw: random.Random) -> bytes:
    """A list that asks for other files, some of them from the network."""
    target = draw.choice(["/etc/passwd", "other.mp4", "http://127.0.0.1:9/secret.ts", "file:///etc/passwd"])
    hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{target}\n#EXT-X-ENDLIST\n"
    dash = f'<?xml version="1.0"?><MPD type="static"><Period><BaseURL>{target}</BaseURL></Period></MPD>\n'
    return draw.choice([hls, f"ffconcat version 1.0\nfile '{target}'\n", dash]).encode()


def web_page(data: bytes, draw: random.Random) -> bytes:
    """What a download gives when it is refused."""
    return f"<!DOCTYPE html><html><body>{'404 not found ' * draw.randrange(1, 200)}</body></html>".encode()


def other_kind(data: bytes, draw: random.Random) -> bytes:
    """Another kind of file under a video's name."""
    png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\2\0\0\0\x90wS\xde"
    return draw.choice([png, b"PK\3\4", b"%PDF-1.7\n", b"\x7fELF\2\1\1"]) + draw.randbytes(draw.randrange(100, 5000))


def encoded(path: Path, codec: str, seconds: float = 1.0) -> bytes:
    """An MP4 file of one stream: noise as sound, or grey frames."""
    with av.open(str(path), "w", format="mp4") as container:
        if codec == "aac":
            stream = container.add_stream(codec, rate=16000, layout="mono")
            frame = av.AudioFrame.from_ndarray((np.arange(int(16000 * seconds)) % 200 / 200).astype(np.float32)[None], "fltp", "mono")
            frame.rate = 16000
        else:
            stream = container.add_stream(codec, rate=8, width=32, height=32, pix_fmt="yuvj420p")
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 90, np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    data = path.read_bytes()
    path.unlink()
    return data


def sound_only(path: Path, draw: random.Random) -> bytes:
    return encoded(path, "aac", draw.uniform(0.2, 1.5))


def huge(path: Path, draw: random.Random) -> bytes:
    """Headers that promise pictures of up to 65,500 pixels a side: motion JPEG says its size in the open."""
    data = bytearray(encoded(path, "mjpeg"))
    height, width = draw.randrange(20_000, 65_500), draw.randrange(20_000, 65_500)
    at = data.find(b"\xff\xc0")
    struct.pack_into(">HH", data, at + 5, height, width)
    return bytes(data)


Damage = Callable[[bytes, random.Random], bytes]
OF_A_VIDEO: dict[str, Damage] = {
    "truncated": truncated,
    "bits flipped": bits_flipped,
    "block zeroed": block_zeroed,
    "bytes doubled": bytes_doubled,
    "atoms swapped": atoms_swapped,
    "cut in the index": cut_in_index,
    "no video stream": no_video_stream,
    "no frames": no_frames,
    "playlist": playlist,
    "web page": web_page,
    "other kind of file": other_kind,
    "empty": lambda data, draw: b"",
}
OF_A_PATH = ("sound only", "huge pictures", "folder or link", "pipe")
KINDS = (*OF_A_VIDEO, *OF_A_PATH)


def damage(kind: str, good: Path, path: Path, draw: random.Random) -> None:
    """Writes a damaged file of one kind at `path`, made from a good video where the kind asks for one."""
    if kind in OF_A_VIDEO:
        path.write_bytes(OF_A_VIDEO[kind](good.read_bytes(), draw))
    elif kind == "sound only":
        path.write_bytes(sound_only(path, draw))
    elif kind == "huge pictures":
        path.write_bytes(huge(path, draw))
    elif kind == "pipe":
        os.mkfifo(path)
    elif draw.random() < 0.5:
        path.mkdir()
    else:
        path.symlink_to(path.name)  # to itself


def make_set(folder: Path, each: int, seed: int = 0) -> dict[str, str]:
    """16 * each good and as many damaged videos in a folder; name -> its kind of damage, or "good"."""
    folder.mkdir(parents=True)
    names, made = {}, folder / "source.mp4"
    for number in range(each * len(KINDS)):
        draw = random.Random(f"damaged videos {seed} {number}")
        good = folder / f"{draw.randbytes(6).hex()}.mp4"
        make_video(good, draw.randrange(1 << 31))
        names[good.name] = "good"
        make_video(made, draw.randrange(1 << 31))
        damaged = folder / f"{draw.randbytes(6).hex()}.mp4"
        names[damaged.name] = KINDS[number % len(KINDS)]
        damage(names[damaged.name], made, damaged, draw)
    made.unlink()
    return names


def hashes(folder: Path, names: dict[str, str]) -> dict[str, str]:
    """SHA-256 of the good files."""
    return {name: sha256(folder / name) for name, kind in names.items() if kind == "good"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--each", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    names = make_set(options.out, options.each, options.seed)
    options.out.with_suffix(".json").write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")
    print(f"{options.out}: {len(names)} files")


if __name__ == "__main__":
    main()
