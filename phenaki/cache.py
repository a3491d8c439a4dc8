"""Where on a user's machine things are kept that can be had again: verdicts of checks, networks of metrics."""

import os
from pathlib import Path


def user_cache() -> Path:
    """PHENAKI_CACHE, or phenaki in the user's cache folder (XDG_CACHE_HOME, ~/.cache)."""
    given = os.environ.get("PHENAKI_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "phenaki"
