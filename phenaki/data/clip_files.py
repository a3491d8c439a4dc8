"""A clip's file, or the reason why a file is no clip: the vocabulary of all data modules.

Files are looked at here, not opened. What cannot be used is kept with its kind and reason, so nothing is left out silently.
"""

import codecs
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
VIDEO_ENDINGS = (".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".gif")  # of READ_FORMATS
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
MAX_CAPTION_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class ClipFile:
    """A video or picture: a file of its own, or a member of a tar shard that begins at byte `offset` of it."""

    name: str  # inside the source, with / between folders: "beach/a.mp4", "00001.tar/beach/a.mp4"
    path: str  # the file to open
    offset: int
    num_bytes: int
    mtime_ns: int
    is_picture: bool
    caption: str
    sha256: str = ""  # of its bytes, where a table or shard states it

    @property
    def key(self) -> str:
        """Changes when the file does: by name, size, time of change and place."""
        return f"{self.name}|{self.num_bytes}|{self.mtime_ns}|{self.offset}|{self.sha256}"


@dataclass(frozen=True)
class Unusable:
    """A file that no clip comes from. kind: a few words from a small set; reason: a sentence."""

    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """Clips in the order of their names, and files that were refused without being decoded.

    lone_texts: .txt files in folders that are no clip's caption. notes: sentences on other files that are not read.
    """

    clips: tuple[ClipFile, ...]
    unusable: tuple[Unusable, ...]
    lone_texts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, clips: list[ClipFile], unusable: list[Unusable], lone_texts: Sequence[str] = ()) -> "Listing":
        in_order = sorted(clips, key=lambda clip: (clip.name, clip.caption))
        return cls(tuple(in_order), tuple(sorted(unusable, key=lambda entry: entry.name)), tuple(sorted(lone_texts)))


def clip_file(path: Path, name: str, caption: str, sha256: str = "") -> ClipFile | Unusable:
    """The clip in a regular file, or why there is none: opening a pipe or a device would block."""
    try:
        facts = path.stat()
    except (OSError, ValueError) as error:
        return Unusable(name, "no such file", str(getattr(error, "strerror", None) or error))
    if not stat.S_ISREG(facts.st_mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        return Unusable(name, "not a file", f"is {kinds.get(stat.S_IFMT(facts.st_mode), 'a device')}, not a regular file")
    if facts.st_size == 0:
        return Unusable(name, "empty", "holds no bytes")
    return ClipFile(name, str(path), 0, facts.st_size, facts.st_mtime_ns, is_picture(name), caption, sha256)


def encoding_of(data: bytes) -> str:
    """How text that begins with these bytes is encoded: UTF-16 where its byte order mark says so, else UTF-8, with or without a mark."""
    return "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"


def read_caption(name: str, data: bytes) -> str | Unusable:
    """The caption in the bytes of a .txt named `name`, cut after `MAX_CAPTION_BYTES`; or why they are no text."""
    try:
        decoder = codecs.getincrementaldecoder(encoding_of(data))()
        text = decoder.decode(data[:MAX_CAPTION_BYTES], final=len(data) < MAX_CAPTION_BYTES)  # where it is cut, half a character may be left
    except UnicodeError:
        text = "\0"
    if "\0" in text:
        return Unusable(name, "not text", "is neither UTF-8 nor UTF-16 with a byte order mark, so its clip has no caption; save it as UTF-8")
    return tidy(text)


def tidy(text: str) -> str:
    """A caption on one line, of characters that can be written: half a surrogate pair, which JSON may hold, becomes "?"."""
    return " ".join(text.split()).encode("utf-8", "replace").decode()


def bad_name(name: str) -> Unusable | None:
    """Why a file of this name is not used; None where it may be. Names that are not UTF-8 or hold control characters would damage reports."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return Unusable(ascii(name), "bad name", "is not UTF-8; rename it")
    if CONTROL.search(name):
        return Unusable(ascii(name), "bad name", "holds control characters, which would command the terminal that shows it; rename it")
    return None


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few of some names, in a line."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def leaves_folder(name: str) -> bool:
    """Whether a name in a table or a tar points anywhere but inside: absolute, a drive, ../, or a web address."""
    parts = name.replace("\\", "/").split("/")
    return not name or "\0" in name or parts[0] == "" or ":" in parts[0] or ".." in parts


def is_picture(name: str) -> bool:
    """Whether a name has a picture's ending."""
    return name.lower().endswith(PICTURE_ENDINGS)


def is_clip_name(name: str) -> bool:
    """Whether a name has a video's or picture's ending."""
    return name.lower().endswith((*VIDEO_ENDINGS, *PICTURE_ENDINGS))
