"""WebDataset shards: a tar of KEY.mp4 (or another video or picture) beside KEY.txt or KEY.json with its caption.

Read with the standard library, without extraction and without URL schemes: a shard's index says at which byte each member
begins, and decoders read the members where they lie. Members that leave the folder, links and devices are refused.
A KEY.json may hold `sha256` of its clip: shards that `phenaki data shard` writes do, so that any damage to them is found.
"""

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from phenaki.data.clip_files import (
    MAX_CAPTION_BYTES,
    ClipFile,
    Listing,
    Unusable,
    bad_name,
    is_clip_name,
    is_picture,
    leaves_folder,
    read_caption,
    tidy,
)

TEXT_ENDINGS = (".txt", ".json")
TAR_ERRORS = (tarfile.TarError, OSError, ValueError, EOFError, OverflowError, RecursionError)  # the last: a long name for a long name for ...


def index_shard(path: Path, on_progress: Callable[[], None] = lambda: None) -> Listing:
    """Every clip of a shard with its place and caption, and every member that is refused. Reads headers and captions only.

    on_progress: called for each member.
    """
    clips: list[tuple[str, tarfile.TarInfo]] = []
    texts: dict[str, dict[str, str]] = {}
    unusable: list[Unusable] = []
    facts = path.stat()
    try:
        with tarfile.open(path, mode="r:") as tar:
            for member in members_of(tar):
                on_progress()
                refusal = refused(member, facts.st_size)
                if refusal is not None:
                    unusable.append(refusal)
                elif is_clip_name(member.name):
                    clips.append((key_of(member.name), member))
                elif member.name.lower().endswith(TEXT_ENDINGS) and member.size > MAX_CAPTION_BYTES:
                    unusable.append(Unusable(member.name, "too long", f"{member.size} bytes; at most {MAX_CAPTION_BYTES} are read beside a clip"))
                elif member.name.lower().endswith(TEXT_ENDINGS):
                    unusable += read_text(tar, member, texts.setdefault(key_of(member.name), {}))
            if not ends_here(tar):
                reason = f"no whole header at byte {tar.offset}, and no end either; members before it are used"
                unusable.append(Unusable("", "damaged shard", reason))
    except TAR_ERRORS as error:
        unusable.append(Unusable("", "damaged shard", f"not a whole tar file ({error}); members before the damage are used"))
    found = [
        ClipFile(
            member.name, str(path), member.offset_data, member.size, facts.st_mtime_ns, is_picture(member.name),
            texts.get(key, {}).get("caption", ""), texts.get(key, {}).get("sha256", ""),
        ) for key, member in clips
    ]  # fmt: skip
    return Listing.of(found, unusable)


def members_of(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members in their order, none of them kept. ReadError where a header states a negative size, with which tarfile would loop forever."""
    offset = -1
    for member in tar:
        if member.offset <= offset:
            raise tarfile.ReadError(f"after the member at byte {offset} comes one at byte {member.offset}")
        offset = member.offset
        yield member
        tar.members = []  # tarfile keeps every member it has seen


def ends_here(tar: tarfile.TarFile) -> bool:
    """Whether a tar ends where reading stopped, with zeros: tarfile also stops, silently, at a damaged header."""
    tar.fileobj.seek(tar.offset)
    block = tar.fileobj.read(2 * tarfile.BLOCKSIZE)  # two blocks: a lost header may be one of zeros
    return len(block) >= tarfile.BLOCKSIZE and not any(block)


def refused(member: tarfile.TarInfo, shard_bytes: int) -> Unusable | None:
    """Why a member is not read; None where it may be."""
    if member.isdir():
        return None
    if (refusal := bad_name(member.name)) is not None:
        return refusal
    if leaves_folder(member.name):
        return Unusable(member.name, "outside the folder", "its name is absolute or leaves the shard")
    if member.issym() or member.islnk():
        return Unusable(member.name, "link", f"links to {member.linkname!r:.80}; links in shards are not followed")
    if not member.isreg() or member.issparse():
        return Unusable(member.name, "not a file", "is a device, a pipe or a sparse file")
    if member.size < 0 or member.offset_data + member.size > shard_bytes:
        return Unusable(member.name, "cut off", f"its {member.size} bytes reach past the end of the shard")
    if member.size == 0 and is_clip_name(member.name):
        return Unusable(member.name, "empty", "holds no bytes")
    return None


def key_of(name: str) -> str:
    """What the files of one sample share: the name up to the first dot after its last slash."""
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.split('.')[0]}"


def read_text(tar: tarfile.TarFile, member: tarfile.TarInfo, texts: dict[str, str]) -> list[Unusable]:
    """Adds what a .txt or .json member states of its clip; a .json overrules a .txt. Returns the refusal of a .txt that is no text."""
    data = tar.extractfile(member).read(MAX_CAPTION_BYTES)
    if member.name.lower().endswith(".txt"):
        caption = read_caption(member.name, data)
        if isinstance(caption, Unusable):
            return [caption]
        texts.setdefault("caption", caption)
        return []
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return []
    if not isinstance(values, dict):
        return []
    for name, kept in (("text", "caption"), ("caption", "caption"), ("sha256", "sha256")):
        if isinstance(values.get(name), str):
            texts[kept] = tidy(values[name]).lower() if kept == "sha256" else tidy(values[name])
    return []


class ShardWriter:
    """Writes one shard. Its members have no time and no owner, so equal clips give equal bytes."""

    def __init__(self, part: Path):
        part.unlink(missing_ok=True)  # never through a link of its name
        self.tar = tarfile.open(part, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed by close()

    def add(self, key: str, clip: Path, values: dict[str, Any]) -> int:
        """Adds a clip and its KEY.json; returns how many bytes the shard has now."""
        with open(clip, "rb") as file:
            self._add(f"{key}{clip.suffix}", os.fstat(file.fileno()).st_size, file)
        text = json.dumps(values, ensure_ascii=False).encode()
        self._add(f"{key}.json", len(text), io.BytesIO(text))
        return self.tar.offset

    def _add(self, name: str, num_bytes: int, file) -> None:
        member = tarfile.TarInfo(name)
        member.size = num_bytes
        self.tar.addfile(member, file)

    def close(self) -> None:
        self.tar.close()
