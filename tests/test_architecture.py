"""The shape of the code, read with `ast`: arrows point one way, heavy packages stay in one file, nothing runs what it reads."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = sorted((ROOT / "phenaki").rglob("*.py"))
TOOLS = sorted((ROOT / "tools").rglob("*.py"))
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60

# What a file may import of phenaki, where that is little. A leaf imports nothing of it.
ALLOWED = {
    "atomic": set(),
    "compiling": set(),
    "cuda_graphs": set(),
    "devices": set(),
    "free_cores": set(),
    "layers": set(),
    "locks": set(),
    "masking": set(),
    "quantizer": set(),
    "config": set(),
    "encoder_folder": {"atomic", "outline"},
    "outline": set(),
    "minilm": {"outline"},
    "text": {"config", "encoder_folder", "minilm"},
    "story_formats": set(),
    "nal_units": set(),
    "video_files": {"nal_units", "retiming", "story_formats"},
    "output_paths": {"atomic", "video_files"},
    "gif_files": {"retiming", "video_files"},
    "part_file": {"atomic", "locks"},
    "video_encoders": {"atomic", "part_file", "retiming", "video_files"},
    "data/art": set(),
    "data/cast": set(),
    "data/phrasings": set(),
    "data/world": {"config", "data/phrasings"},
    "data/captions": {"data/cast", "data/phrasings"},
    "data/poses": {"data/cast", "data/world"},
    "data/painter": {"data/art", "data/cast", "data/poses", "devices"},
    "cvivit": {"config", "layers", "quantizer"},
    "maskgit": {"config", "layers", "sampling"},
    "sampling": {"config", "devices", "masking"},
    "past": {"cuda_graphs", "cvivit", "layers"},
    "pixels": set(),
    "director": {"cuda_graphs", "cvivit", "devices", "maskgit", "past", "sampling", "story_plan"},
    "repainting": {"cvivit", "devices", "director", "maskgit", "masking", "past", "sampling"},
    "pictures": {"video_files"},
    "contact_sheet": {"atomic", "video_encoders", "video_files"},
    "regions": {"pictures"},
    "retiming": set(),
    "vocabulary": set(),
    "progress": set(),
    "script_argument": {
        "atomic", "contact_sheet", "data/decoding", "gif_files", "output_paths", "video_files", "story", "story_formats", "video_encoders",
    },
    "frame_source": {"data/decoding", "gif_files", "pictures", "video", "video_files"},
    "editing": {
        "checkpoint", "frame_source", "output_paths", "pictures", "pipeline", "pixels", "progress", "recording", "regions", "repainting", "story",
        "story_for_model", "video", "video_files",
    },
    "story": {"story_formats"},
    "story_plan": {"story", "story_formats"},
    "story_for_model": {"checkpoint", "retiming", "sampling", "scene_files", "story", "story_plan", "video_files", "vocabulary"},
    "video": {"atomic", "contact_sheet", "gif_files", "output_paths", "part_file", "pictures", "video_encoders", "video_files"},
    "scene_files": {"atomic", "checkpoint", "director", "frame_source", "pictures", "story", "story_formats", "story_plan", "video_files"},
    "recording": {"checkpoint", "output_paths", "part_file", "pipeline", "progress", "sampling", "scene_files", "video", "video_encoders"},
    "script_folder": {"output_paths", "story_formats", "video_files"},
    "rendering": {
        "checkpoint", "data/decoding", "devices", "output_paths", "part_file", "pipeline", "recording", "scene_files", "script_folder",
        "story", "story_for_model",
    },
    "rendering_worker": {"rendering", "script_folder"},
    "rendering_processes": {"child_process", "devices", "rendering", "script_folder"},
    "rendering_ray": {"atomic", "checkpoint", "rendering", "rendering_processes", "script_folder", "story", "story_for_model", "story_formats"},
    "rendering_display": {"rendering", "script_folder"},
    "rendering_program": {"rendering", "rendering_display", "rendering_processes", "rendering_ray"},
    "data/tensor_file": {"atomic", "locks"},
    "data/tokens": {"data/ahead", "data/clip_source", "data/tensor_file"},
    "data/token_parts": {"data/clip_source", "data/tensor_file", "data/tokens", "locks"},
    "training/tasks": {"masking", "training/settings"},
    "training/memory": {"compiling", "training/optimizers", "training/parallel", "training/task"},
    "training/rollouts": {"data/tokens", "devices", "maskgit", "sampling"},
    "training/task": {"devices", "training/parallel"},
    "training/heap": set(),
    "training/run_tensors": {"training/checkpoints", "training/optimizers", "training/parallel"},
    "training/generator_losses": {
        "data/tokens", "devices", "director", "maskgit", "training/batches", "training/parallel", "training/rollouts", "training/settings",
    },
    "training/same_tokens": {"checkpoint", "config", "cvivit", "training/checkpoints"},
    "training/beginning": {
        "atomic", "checkpoint", "compiling", "data/order", "locks", "training/checkpoints", "training/optimizers", "training/parallel",
    },
    "training/muon": set(),
    "training/batches": {
        "data/tokens", "devices", "masking", "maskgit", "training/optimizers", "training/rollouts", "training/settings", "training/tasks",
    },
    "data/storybook": {"data/art", "data/captions", "data/cast", "data/clip_source", "data/painter", "data/poses", "data/world"},
    "data/footage_settings": {"config"},
    "data/clip_source": {"data/clip_files"},
    "data/sources": {
        "data/clip_files", "data/clip_source", "data/footage", "data/footage_settings", "data/listing", "data/storybook", "data/tokens",
        "data/world",
    },
    "evaluation/referee": {"atomic", "checkpoint", "config", "data/tensor_file", "data/world", "outline"},
    "training/referee_augmentation": {"devices"},
    "training/referee_examples": {
        "cvivit", "data/captions", "data/poses", "data/storybook", "data/world", "devices", "evaluation/referee", "pixels",
    },
    "training/referee_bank": {"checkpoint", "config", "cvivit", "data/storybook", "data/tensor_file", "training/referee_examples"},
    "training/referee": {
        "config", "devices", "evaluation/referee", "pixels", "training/optimizers", "training/parallel", "training/referee_augmentation",
        "training/referee_examples", "training/task",
    },
    "training/referee_figures": {
        "cvivit", "data/storybook", "devices", "evaluation/adherence", "evaluation/referee", "pixels", "training/referee_examples",
    },
    "evaluation/pickled_arrays": set(),
    "evaluation/weights": {"atomic", "cache"},
    "evaluation/lpips": {"evaluation/weights"},
    "evaluation/i3d": {"evaluation/weights"},
    "evaluation/carriers": {"evaluation/i3d", "evaluation/lpips"},
    "evaluation/install": {"data/shards", "evaluation/carriers", "evaluation/pickled_arrays", "evaluation/weights"},
    "training/discriminator": set(),
    "training/adversarial": {"quantizer"},
    "training/losses": {
        "config", "cvivit", "devices", "evaluation/i3d", "evaluation/lpips", "evaluation/metrics", "training/adversarial", "training/discriminator",
    },
    "evaluation/metrics": set(),
    "evaluation/frechet": set(),
    "evaluation/codebook": set(),
    "evaluation/networks": {"evaluation/lpips", "evaluation/i3d", "evaluation/weights"},
    "evaluation/tokenizer": {
        "checkpoint", "cvivit", "data/ahead", "data/clip_source", "data/order", "evaluation/codebook", "evaluation/frechet", "evaluation/metrics",
        "evaluation/networks", "pixels",
    },
    "evaluation/outputs": {"atomic"},
    "evaluation/tokenizer_report": {"atomic", "evaluation/outputs", "evaluation/tokenizer", "pixels"},
    "evaluation/bootstrap": set(),
    "evaluation/seams": {"evaluation/metrics"},
    "evaluation/adherence": {"data/world"},
    "evaluation/story_scripts": {"config", "data/captions", "data/order", "data/storybook", "data/world", "evaluation/adherence", "story"},
    "evaluation/story_work": {"atomic", "evaluation/adherence", "evaluation/seams", "video"},
    "evaluation/story": {
        "checkpoint", "data/storybook", "evaluation/adherence", "evaluation/referee", "evaluation/seams", "evaluation/story_scripts",
        "evaluation/story_work", "evaluation/tokenizer", "pipeline", "pixels",
    },
    "evaluation/story_figures": {
        "evaluation/adherence", "evaluation/bootstrap", "evaluation/frechet", "evaluation/story_scripts", "evaluation/story_work",
    },
    "evaluation/exam": {
        "data/storybook", "data/world", "evaluation/networks", "evaluation/outputs", "evaluation/referee", "evaluation/story", "pipeline", "sampling",
    },
    "evaluation/looks": {"evaluation/metrics"},
    "evaluation/drift_scripts": {"config", "data/order", "data/storybook", "data/world", "story"},
    "evaluation/drift": {
        "atomic", "data/storybook", "data/world", "evaluation/adherence", "evaluation/drift_scripts", "evaluation/looks", "evaluation/referee",
        "evaluation/story", "evaluation/tokenizer", "part_file", "pipeline", "pixels", "recording", "story_plan", "video", "video_encoders",
    },
    "evaluation/drift_figures": {
        "evaluation/bootstrap", "evaluation/drift", "evaluation/drift_scripts", "evaluation/looks", "evaluation/story_figures",
    },
    "evaluation/drift_plot": {"atomic"},
    "evaluation/story_report": {"evaluation/outputs", "evaluation/story_figures", "evaluation/story_scripts", "evaluation/story_work"},
    "data/order": set(),
    "data/ahead": set(),
    "data/clip_files": set(),
    "data/table": {"data/clip_files"},
    "data/shards": {"data/clip_files"},
    "data/listing": {"data/clip_files", "data/table"},
    "data/clip_decoder": {"data/clip_files", "pictures", "video_encoders", "video_files"},
    "data/decoding_worker": {"atomic", "data/clip_decoder", "data/clip_files", "data/shards", "video_files"},
    "child_process": set(),
    "data/decoding": {"child_process", "data/clip_decoder", "data/clip_files", "video_files"},
    "cache": set(),
    "data/check": {"atomic", "cache", "data/clip_decoder", "data/clip_files", "data/decoding", "data/listing", "locks"},
    "planning_display": {"checkpoint", "planning"},
    "cli_messages": {"atomic"},
    "cli_options": set(),
    "cli_train": {"cli_messages", "cli_options", "devices", "training/display", "training/generator", "training/tokenizer"},
    "cli_data": {
        "cli_messages", "cli_options", "data/check", "data/preview", "data/sharding", "devices", "evaluation/install",
        "training/settings", "training/stories",
    },
}
LIGHT = {"einops", "torch", "phenaki"}  # all that the algorithm files may import besides the standard library


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT / "phenaki").with_suffix("").as_posix()


@cache
def imports(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function, as a dotted name."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_imports(path: Path) -> set[str]:
    """Files of the package that a file imports, as "data/art"."""
    known = {name_of(other) for other in PACKAGE}
    dotted = {name.removeprefix("phenaki.").replace(".", "/") for name in imports(path) if name.startswith("phenaki.")}
    return dotted & known


def packages(path: Path) -> set[str]:
    """Top-level packages imported, without the standard library."""
    return {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)


def calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, ast.Call))


def test_the_reader_of_imports_sees_what_is_there():
    assert own_imports(ROOT / "phenaki/cvivit.py") == {"config", "layers", "quantizer"}
    assert "training/tokenizer" in own_imports(ROOT / "phenaki/cli_train.py"), "imports inside functions count"
    assert "transformers" in packages(ROOT / "phenaki/encoder_folder.py")


@pytest.mark.parametrize("name", ALLOWED)
def test_a_file_imports_only_its_own_leaves(name):
    assert own_imports(ROOT / f"phenaki/{name}.py") <= ALLOWED[name]


ALGORITHMS = [
    "layers", "quantizer", "masking", "cvivit", "maskgit", "sampling", "past", "director", "repainting", "data/captions", "evaluation/metrics",
    "evaluation/frechet", "evaluation/codebook", "evaluation/tokenizer", "evaluation/i3d", "evaluation/lpips", "training/discriminator",
    "training/adversarial", "training/losses", "evaluation/bootstrap", "evaluation/seams", "evaluation/adherence", "evaluation/story",
    "evaluation/story_figures", "evaluation/looks", "evaluation/drift_figures",
    "training/referee", "training/referee_augmentation", "training/referee_examples", "training/referee_figures",
]  # fmt: skip


@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithms_import_no_heavy_package(name):
    assert packages(ROOT / f"phenaki/{name}.py") <= LIGHT


@pytest.mark.parametrize(
    ("package", "homes"),
    [
        ("transformers", {"encoder_folder"}),
        ("av", {"video_encoders", "video_files"}),
        ("yaml", {"story_formats"}),
        ("pydantic", {"story"}),
        ("typer", {"cli", "cli_data", "cli_evaluate", "cli_messages", "cli_options", "cli_train"}),
        ("pyarrow", {"data/table"}),
        ("ray", {"rendering_ray"}),
    ],
)
def test_a_heavy_package_has_one_home(package, homes):
    assert {name_of(path) for path in PACKAGE if package in packages(path)} <= homes


def test_no_circle_of_imports():
    arrows = {name_of(path): own_imports(path) for path in PACKAGE if path.name != "__init__.py"}
    while leaves := {name for name, targets in arrows.items() if not targets & set(arrows)}:
        arrows = {name: targets for name, targets in arrows.items() if name not in leaves}
    assert not arrows, f"a circle among {sorted(arrows)}"


def test_arrows_point_from_programs_to_leaves():
    for path in PACKAGE:
        name, own = name_of(path), own_imports(path)
        assert "cli" not in own or name == "__main__", f"{name} imports the command line"
        if not name.startswith(("data/", "training/", "cli")):  # the command line starts the training programs
            assert not any(other.startswith("training/") for other in own), f"{name} imports phenaki.training"
        if name.startswith("data/"):
            assert not any(other.startswith("training/") for other in own), f"{name} imports phenaki.training"


@pytest.mark.parametrize("path", [*PACKAGE, *TOOLS], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_runs_what_it_reads(path):
    """No pickle, eval, exec, torch.load or shell: a model folder, a story or a data file is only ever data."""
    banned = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    assert not banned & {name.split(".")[0] for name in imports(path)}
    for call in calls(path):
        called = ast.unparse(call.func)
        where = f"{path}:{call.lineno}: {called}"
        assert called not in ("eval", "exec", "compile", "__import__"), where
        assert called not in ("torch.load", "os.system", "os.popen", "np.load", "numpy.load"), where
        assert called not in ("yaml.unsafe_load", "yaml.full_load", "yaml.load_all"), where
        options = {keyword.arg: keyword.value for keyword in call.keywords}
        assert not ("shell" in options and ast.unparse(options["shell"]) != "False"), where
        assert "trust_remote_code" not in options or ast.unparse(options["trust_remote_code"]) == "False", where
        if called == "yaml.load":
            loader = ast.unparse(options["Loader"]) if "Loader" in options else ast.unparse(call.args[1])
            assert loader in ("yaml.SafeLoader", "yaml.CSafeLoader"), where


def test_every_yaml_loader_is_a_safe_one():
    for path in PACKAGE:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("yaml.") and node.attr.endswith("Loader"):
                assert node.attr in ("SafeLoader", "CSafeLoader"), path
    from phenaki.story_formats import _PlainLoader

    assert issubclass(_PlainLoader, yaml.constructor.SafeConstructor) and not issubclass(_PlainLoader, yaml.constructor.FullConstructor)


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_and_functions_stay_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, f"{path}:{node.lineno}: {node.name}"


def test_the_design_names_every_file():
    layout = (ROOT / "docs/DESIGN.md").read_text(encoding="utf-8").split("## Layout")[1].split("Arrows:")[0]
    names = [path.stem for path in PACKAGE if not path.stem.startswith("__")]
    missing = [name for name in names if not re.search(rf"\b{name}\b", layout) and not re.search(rf"\b{name.split('_')[0]}_?\*", layout)]
    assert not missing


def test_no_nameless_files():
    assert not {path.stem for path in PACKAGE} & {"utils", "util", "helpers", "common", "misc"}


def test_import_phenaki_is_light():
    """Neither torch nor transformers is loaded until something that needs them is asked for; the command's help needs neither."""
    heavy = "{'torch', 'transformers', 'av', 'numpy', 'phenaki.pipeline'}"
    code = f"import sys, phenaki, phenaki.cli; print(*sorted(set(sys.modules) & {heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == []


def test_every_public_name_is_there():
    import phenaki

    for name in phenaki.__all__:
        assert getattr(phenaki, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = phenaki.nothing
