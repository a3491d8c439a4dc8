"""Phenaki: from a script of prompts to one continuous video of any length.

    import phenaki
    video = phenaki.generate_story(["A teddy bear walks along the beach", "The teddy bear hops at sunset"])
    video.save("bear.mp4")

Names are loaded when they are first used, so `import phenaki` is quick.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "phenaki.editing": ("Edit", "edit", "stream_edit"),
    "phenaki.pipeline": ("Phenaki", "StoryChunk", "generate_story", "load", "stream_story"),
    "phenaki.recording": ("generate_to_file",),
    "phenaki.regions": ("Region", "RegionError"),
    "phenaki.story": ("Scene", "Story"),
    "phenaki.story_formats": ("StoryError",),
    "phenaki.video": ("Video",),
    "phenaki.video_files": ("VideoError",),
    "phenaki.checkpoint": ("CheckpointError",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
__all__ = [*_HOME_OF, "__version__"]


def __getattr__(name: str):
    if name not in _HOME_OF:
        raise AttributeError(f"module 'phenaki' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
