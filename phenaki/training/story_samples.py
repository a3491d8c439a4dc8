"""Pictures of a generator's run: short stories told by the network as it is."""

from pathlib import Path

import numpy as np
import torch

from phenaki.checkpoint import Model
from phenaki.contact_sheet import contact_sheet
from phenaki.data.clip_files import tidy
from phenaki.devices import device_of
from phenaki.director import SceneText, direct
from phenaki.maskgit import MaskGIT
from phenaki.pixels import to_pixels
from phenaki.sampling import SamplingOptions
from phenaki.story import MAX_PROMPT_CHARS, Story, one_line
from phenaki.story_plan import plan
from phenaki.text import TextEncoder
from phenaki.training.samples import save_clip, save_pixels
from phenaki.training.stories import Prompts
from phenaki.video_files import VideoScene


def tellable(caption: str, text_encoder: TextEncoder) -> str:
    """A caption as a scene's prompt: on one line, no longer than a prompt may be and the text encoder reads; "a video" where none is left."""
    return text_encoder.shortened(one_line(tidy(caption))[:MAX_PROMPT_CHARS].strip()) or "a video"


@torch.no_grad()
def save_story_sample(stories: Prompts, model: MaskGIT, base: Model, text_encoder: TextEncoder, sampling: SamplingOptions, path: Path) -> None:
    """Short stories told by a network: every second frame as path.png, a row each with its prompts; all as path.mp4, one above the other.

    base: the model whose tokenizer it was trained on. sampling: the options that the trained model will have.
    """
    tokenizer = base.info.tokenizer
    rows, scenes = [], []
    for index, story in enumerate(stories):
        script = Story.of([(tellable(prompt, text_encoder), seconds) for prompt, seconds in story])
        planned = plan(script, fps=base.info.fps, temporal_patch_size=tokenizer.temporal_patch_size, chunk_slices=model.config.chunk_slices)
        encoded = [text_encoder.encode([scene.prompt]).to(device_of(model)) for scene in planned.scenes]
        texts = [SceneText(one.text, one.text_mask) for one in encoded]
        chunks = direct(planned, base.tokenizer, model, texts, sampling, index, tokenizer.grid)
        rows.append(to_pixels(torch.cat([chunk.frames for chunk in chunks]), tokenizer.image_size))
        scenes.append(" | ".join(scene.prompt for scene in planned.scenes))
    shown, starts = [row[::2] for row in rows], np.cumsum([0] + [len(row[::2]) for row in rows])
    chapters = [VideoScene(text, int(start), len(row)) for text, start, row in zip(scenes, starts, shown, strict=False)]
    save_pixels(path.with_suffix(".png"), contact_sheet(np.concatenate(shown), chapters, columns=13))
    length = min(map(len, rows))
    save_clip(np.concatenate([row[:length] for row in rows], axis=1), path.with_suffix(".mp4"), base.info.fps)
