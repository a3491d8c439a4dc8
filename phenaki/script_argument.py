"""What may stand for a script on the command line: its file, `-` (plain text on standard input), a prompt itself, a video made before.

A video made before is known by the script inside it, which is also how a result is kept from replacing a file of somebody else's.
"""

import glob
import os
import re
import sys
from pathlib import Path
from typing import Any

from phenaki.atomic import free_name, sha256
from phenaki.contact_sheet import sheet_script
from phenaki.data.decoding import OWN_TIME_LIMIT, Worker, read_script
from phenaki.gif_files import gif_facts
from phenaki.output_paths import is_sequence, names_written
from phenaki.story import MAX_FILE_BYTES, Story, decoded
from phenaki.story_formats import FILE_FIELDS, PARSERS, StoryError
from phenaki.video_encoders import CODECS, is_own_frame
from phenaki.video_files import VideoError

NOT_OURS = "and this program did not make it; give the result another name, or --overwrite replaces it"


def read_script_argument(given: str) -> tuple[Story, Path]:
    """The story, and what messages name it by. Raises StoryError where there is none in what was given, VideoError for a damaged video."""
    path = Path(given)
    if given == "-":
        return Story.from_text(decoded(sys.stdin.buffer.read(MAX_FILE_BYTES + 1), "plain text")), Path("standard input")
    if os.path.isdir(given):  # not Path's own, which fails for a prompt that is too long for a name
        raise StoryError("is a folder; give a script in it, or all of them by `generate --scripts`", file=given)
    names_a_file = os.path.exists(given) or len(given.split()) == 1 or (len(path.parts) > 1 and os.path.isdir(path.parent))
    if path.suffix.lower() in (*CODECS, ".gif") and names_a_file:
        return story_of_video(path), path
    if path.suffix.lower() in PARSERS or os.path.exists(given):
        return Story.load(path), path
    if names_a_file:
        raise StoryError(f"no such file, and a prompt has more than one word. A script ends in {' '.join(PARSERS)}", file=given)
    return Story.from_text(given), Path("prompt")


def unused_output(given: str) -> Path:
    """Where the video of a script goes by default: in the working folder, by the script's name, or a prompt's first words; a name that is free."""
    is_prompt = len(given.split()) > 1 and not os.path.exists(given)
    stem = "-".join(re.findall(r"\w+", given.lower())[:4]) if is_prompt else Path(given).stem.strip("-.")
    path = Path(f"{stem[:60] or 'story'}.mp4")
    return free_name(path) if os.path.lexists(path) else path


def story_of_video(path: Path) -> Story:
    """The story that a video was made of, whose pictures and clips lie beside it."""
    if not path.is_file():
        raise StoryError("no such file", file=str(path))
    script = script_in(path)
    if script is None:
        raise StoryError(f"holds no script: only videos made of one do. A script ends in {' '.join(PARSERS)}", file=str(path))
    if "edit" in script:
        raise StoryError("is an edit of a clip, which its prompt alone does not make again; edit the clip anew by `phenaki edit`", file=str(path))
    try:
        return Story.from_dict(with_files_of(script, path.parent), folder=path.parent)
    except StoryError as error:
        raise StoryError(f"its script cannot be told again: {error.problem}", file=str(path)) from None


def with_files_of(script: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A video's script with its pictures and videos named as they lie in a folder, or in a folder in it: by their hashes, which it holds.

    StoryError where another file has such a name, but none the bytes that the video was made from.
    """
    scenes = [dict(scene) if isinstance(scene, dict) else scene for scene in script["scenes"]]
    named = [(scene, index, field) for index, scene in enumerate(scenes) if isinstance(scene, dict) for field in FILE_FIELDS if scene.get(field)]
    made_with = script.get("made_with")
    hashes = made_with.get("files") if isinstance(made_with, dict) else None
    if not isinstance(hashes, list) or len(hashes) != len(named):
        return script  # of an earlier version
    for (scene, index, field), digest in zip(named, hashes, strict=True):
        name = scene[field]
        there = [file for file in (folder / name, *sorted(folder.glob(f"*/{glob.escape(name)}"))) if file.is_file()]
        same = next((file for file in there if sha256(file) == digest), None)
        if there and same is None:
            raise StoryError(f"scenes[{index}].{field} = {name!r}: is another file than the one that it was made from; put that one there")
        scene[field] = name if same is None else same.relative_to(folder).as_posix()
    return {**script, "scenes": scenes}


def script_in(path: Path) -> dict[str, Any] | None:
    """The script that a video, GIF or contact sheet was made of; None where it has none. VideoError for a damaged file."""
    if path.suffix.lower() == ".gif":
        return gif_facts(path).script
    if path.suffix.lower() == ".png":
        return sheet_script(path)
    with Worker(OWN_TIME_LIMIT) as worker:
        return read_script(path, worker)


def check_replaceable(path: Path, overwrite: bool) -> None:
    """VideoError where a result would take the place of a file that this program did not make: one without a script. An empty one may go."""
    if not overwrite and is_sequence(path):
        names = names_written(path)
        others = (file for file in path.parent.iterdir() if names.fullmatch(file.name) and not is_own_frame(file))
        if (other := next(others, None)) is not None:
            raise VideoError(f"{path}: {other.name} is there, {NOT_OURS}")
    if overwrite or not path.is_file() or not path.stat().st_size:
        return
    try:
        script = script_in(path)
    except VideoError:
        script = None
    if script is None:
        raise VideoError(f"{path}: is there, {NOT_OURS}")
