"""What is known of a chunk besides its context: one model, many masks (COMMIT of MAGVIT, Yu et al. 2022, arXiv 2212.05199).

A task leaves a region of the chunk unknown. The random mask of training is kept to that region, so what the task knows is
never hidden, and of the rest as much is hidden as at some round of sampling.
"""

import torch
from torch import Tensor

from phenaki.masking import between_mask, continuation_mask, random_boxes
from phenaki.training.settings import MaskTasks

TASKS = ("plain", "first_frame", "between", "inpaint", "outpaint")  # by number; plain: from text or continuing, nothing more is known
PLAIN, FIRST_FRAME, BETWEEN, INPAINT, OUTPAINT = range(len(TASKS))


def draw_tasks(shape: tuple[int, int, int, int], starts: bool, shares: MaskTasks, rng: torch.Generator) -> Tensor:
    """A task's number for each sample of chunks (b t h w), (b,) int64. A task that is not possible for them leaves its share to the plain ones."""
    b, t, h, w = shape
    possible = {
        FIRST_FRAME: shares.first_frame if starts and t >= 2 else 0.0,
        BETWEEN: shares.between if t >= 3 else 0.0,
        INPAINT: shares.inpaint if h * w >= 2 else 0.0,
        OUTPAINT: shares.outpaint if h * w >= 2 else 0.0,
    }
    bounds = torch.tensor([possible[task] for task in range(1, len(TASKS))], dtype=torch.float64).cumsum(0)
    drawn = torch.rand(b, generator=rng, dtype=torch.float64)
    return (torch.searchsorted(bounds, drawn, right=True) + 1) % len(TASKS)  # above all bounds: plain


def task_regions(tasks: Tensor, shape: tuple[int, int, int, int], rng: torch.Generator) -> Tensor:
    """What the tasks (b,) leave unknown of chunks (b t h w): boolean of that shape, True = may be hidden."""
    regions = torch.ones(shape, dtype=torch.bool)
    for task, mask in ((FIRST_FRAME, continuation_mask), (BETWEEN, between_mask)):
        rows = (tasks == task).nonzero().squeeze(1)
        regions[rows] = mask((len(rows), *shape[1:]), 1)
    painted = ((tasks == INPAINT) | (tasks == OUTPAINT)).nonzero().squeeze(1)
    if len(painted):
        boxes = random_boxes(len(painted), shape[2], shape[3], rng)
        regions[painted] = (boxes == (tasks[painted] == INPAINT)[:, None, None, None]).expand(-1, shape[1], -1, -1)
    return regions
