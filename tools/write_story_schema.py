"""Write docs/story.schema.json, the published schema of a story file: `python tools/write_story_schema.py`."""

import json
from pathlib import Path

from phenaki.story import Story

SCHEMA_FILE = Path(__file__).resolve().parents[1] / "docs" / "story.schema.json"

if __name__ == "__main__":
    SCHEMA_FILE.write_text(json.dumps(Story.json_schema(), indent=2) + "\n", encoding="utf-8")
    print(f"wrote {SCHEMA_FILE}")
