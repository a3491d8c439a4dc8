"""`phenaki generate --scripts`: a folder of scripts into a folder of videos, in whichever way was asked for."""

from functools import partial
from pathlib import Path

from phenaki.rendering import FolderReport, RenderSettings, Runner, render_folder, render_here
from phenaki.rendering_display import RenderingDisplay
from phenaki.rendering_processes import check_num_workers, render_in_processes
from phenaki.rendering_ray import import_ray, render_on_ray


def choose_runner(num_workers: int | None = None, ray_address: str | None = None) -> Runner:
    """What makes the videos: this process, so many others, or a Ray cluster. RenderError where it cannot be had."""
    if num_workers is not None:
        check_num_workers(num_workers)
    if ray_address is not None:
        import_ray()
        return partial(render_on_ray, address=ray_address, num_workers=num_workers)
    if num_workers in (None, 1):
        return render_here
    return partial(render_in_processes, num_workers=num_workers)


def run_rendering(
    scripts: Path, output: Path, settings: RenderSettings, *, ending: str, num_workers: int | None, ray_address: str | None
) -> FolderReport:
    """Renders a folder and shows how it gets on; says in the end what came of it."""
    runner = choose_runner(num_workers, ray_address)
    with RenderingDisplay() as display:
        try:
            report = render_folder(scripts, output, settings, ending=ending, runner=runner, watcher=display)
        except KeyboardInterrupt as error:
            error.add_note("finished videos and part files stay: the same command goes on from there")
            raise
        display.note(f"{output}: {len(report.made)} videos made, {len(report.kept)} kept, {len(report.failed)} failed")
    return report
