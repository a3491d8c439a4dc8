"""What a path holds: a folder of videos and pictures, a table of them, tar shards of them, or videos and shards in one folder."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from phenaki.data.clip_files import (
    MAX_CAPTION_BYTES,
    PICTURE_ENDINGS,
    VIDEO_ENDINGS,
    ClipFile,
    Listing,
    Unusable,
    bad_name,
    clip_file,
    is_clip_name,
    read_caption,
    some,
    tidy,
)
from phenaki.data.table import read_table

BESIDE = (".txt", ".json", ".jsonl", ".csv", ".parquet")  # files beside clips that are no clips: captions, tables, reports
MEDIA_ENDINGS = (*VIDEO_ENDINGS, *PICTURE_ENDINGS, ".tar")
TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
TABLE_ENDINGS = (".jsonl", ".csv", ".parquet")
REPORTS = ("unusable", "held-out-unusable", "stories-unusable")  # how reports of training and of shards begin, which are no tables

ReadShard = Callable[[Path], Listing]  # one tar -> its clips, names as in the tar


def is_footage(path: Path) -> bool:
    """Whether a path is one that `list_clips` reads."""
    return path.is_dir() or path.suffix.lower() in (".tar", *TABLE_ENDINGS)


def list_clips(path: str | Path, read_shard: ReadShard) -> Listing:
    """Every clip of a folder, a table or a shard. ValueError where there is no such path, or where it holds no clips."""
    path = Path(path)
    if bad_name(str(path)) is not None:
        raise ValueError(f"{str(path)!a}: a name that is not UTF-8; rename it")
    tables = [path / name for name in TABLES if (path / name).is_file()]
    if path.is_file() and path.suffix.lower() == ".tar":
        listing = in_folder(path.name, read_shard(path))
    elif path.is_file() and is_footage(path):
        listing = read_table(path)
    elif tables:
        listing = read_table(tables[0])
        listing = replace(listing, notes=(*listing.notes, *beside_table(path, tables[0], listing)))
    elif path.is_dir():
        listing = list_folder(path, read_shard)
    else:
        raise ValueError(f"{path}: needed a folder, a table ({', '.join(TABLES)}) or a tar shard; there is none here")
    if not listing.clips and not listing.unusable:
        raise ValueError(f"{path}: holds no videos ({', '.join(VIDEO_ENDINGS)}), pictures ({', '.join(PICTURE_ENDINGS)}) or .tar shards")
    return listing


def beside_table(root: Path, table: Path, listing: Listing) -> list[str]:
    """Notes about files in a folder with a table that are not read, since the table does not name them."""
    named = {*(clip.name for clip in listing.clips), *(Path(entry.name).as_posix() for entry in listing.unusable)}
    left_out: list[str] = []
    tables: list[str] = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in files:
            inside = Path(folder, name).relative_to(root).as_posix()
            if is_table_name(name) and inside != table.name:
                tables.append(inside)
            elif name.lower().endswith(MEDIA_ENDINGS) and not name.startswith(".") and inside not in named:
                left_out.append(tidy(inside))
    notes = [f"{table.name} leaves out {len(left_out)} files of this folder: {some(sorted(left_out))}"] if left_out else []
    return notes + unread(tables, f"{table.name} is read")


def is_table_name(name: str) -> bool:
    """Whether a file in a folder may be meant as a table of clips."""
    return name.lower().endswith(TABLE_ENDINGS) and not name.startswith((".", *REPORTS))


def unread(tables: list[str], read: str = f"a folder's own is named {', '.join(TABLES[:-1])} or {TABLES[-1]}") -> list[str]:
    """A note about tables that are not read, none where there are none. read: which one is, or would be."""
    return [f"tables that are not read: {some(sorted(map(tidy, tables)))}; {read}"] if tables else []


def list_folder(root: Path, read_shard: ReadShard) -> Listing:
    """Videos, pictures and shards under a folder, in subfolders too; names that begin with a dot and files `BESIDE` them are skipped."""
    clips: list[ClipFile] = []
    unusable: list[Unusable] = []
    lone_texts: list[str] = []
    tables: list[str] = []
    for folder, subfolders, files in os.walk(root):
        odd = [name for name in subfolders if is_clip_name(name)]
        links = [name for name in subfolders if name not in odd and Path(folder, name).is_symlink()]
        subfolders[:] = sorted(name for name in subfolders if name not in (*odd, *links) and not name.startswith("."))
        names = sorted([*files, *odd, *links])
        of_clips = {Path(name).with_suffix(".txt").name for name in names if is_clip_name(name)}
        for name in names:
            path = Path(folder, name)
            inside = path.relative_to(root).as_posix()
            if name.startswith("."):
                continue
            if (refusal := bad_name(inside)) is not None:
                unusable.append(refusal)
            elif path.suffix.lower() == ".tar":
                shard = in_folder(inside, read_shard(path))
                clips += shard.clips
                unusable += shard.unusable
            elif is_clip_name(name):
                caption = folder_caption(path, root)
                if isinstance(caption, Unusable):
                    unusable.append(caption)
                    caption = ""
                found = clip_file(path, inside, caption)
                (clips if isinstance(found, ClipFile) else unusable).append(found)
            elif name in links:
                unusable.append(Unusable(inside, "link", "is a link to a folder, which is not followed; put the folder itself here"))
            elif name.lower().endswith(".txt"):
                lone_texts += [] if name in of_clips else [inside]
            elif is_table_name(name):
                tables.append(inside)
            elif not name.lower().endswith(BESIDE):
                unusable.append(Unusable(inside, "not a video", "neither a video's nor a picture's ending that is read"))
    listing = Listing.of(clips, list(dict.fromkeys(unusable)), lone_texts)  # two clips may share a caption
    return replace(listing, notes=tuple(unread(tables)))


def in_folder(name: str, listing: Listing) -> Listing:
    """A listing with `name`/ before every name."""
    clips = [replace(clip, name=f"{name}/{clip.name}") for clip in listing.clips]
    refused = [Unusable(f"{name}/{entry.name}" if entry.name else name, entry.kind, entry.reason) for entry in listing.unusable]
    return Listing.of(clips, refused)


def folder_caption(path: Path, root: Path) -> str | Unusable:
    """The caption of a clip: the text of NAME.txt; without one, the name of its folder inside `root` (class folders), else "".

    Unusable, with the reason, where NAME.txt is no text or links to a file outside of `root`: captions are copied into tokens and shards.
    """
    text = path.with_suffix(".txt")
    if text.is_file():
        name = text.relative_to(root).as_posix()
        if text.is_symlink() and not text.resolve().is_relative_to(root.resolve()):
            return Unusable(name, "link", "leads out of the folder, and is not read; put the caption itself here")
        with open(text, "rb") as file:
            return read_caption(name, file.read(MAX_CAPTION_BYTES))
    return path.parent.name.replace("_", " ") if path.parent != root else ""
