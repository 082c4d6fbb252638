"""The house rules that a machine can check: one way of imports, honest deps, no heavy imports where none belong."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagepipe.core.config import read_yaml
from tests.conftest import ROOT

SRC = ROOT / "src"
STAGES = ("fetch", "split", "balance", "train", "evaluate")
# Left to right: a module may import from its own package and from those before it.
WAY = (
    "core",
    "sources",
    "prepare",
    "data",
    "models",
    "training",
    "evaluation",
    "report",
    "inference",
    "recipes",
    "proof",
    "cli",
)
TORCH_PACKAGES = {"data", "models", "training", "evaluation", "inference"}
TORCHVISION_AT_FETCH = "torchvision_exports.py"  # sets that only torchvision can download and read


def read_pipeline() -> dict[str, dict[str, object]]:
    return read_yaml(ROOT / "dvc.yaml")[0]["stages"]


def list_imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports anywhere in it, from inside functions too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def find_module(name: str) -> Path | None:
    """The file of an imagepipe module; None for a name that is none."""
    path = SRC.joinpath(*name.split("."))
    candidates = [path.with_suffix(".py"), path / "__init__.py"]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def close_over_imports(script: Path) -> set[Path]:
    """Every file of imagepipe that the script imports, directly or through others."""
    found: set[Path] = set()
    open_files = [script]
    while open_files:
        for name in list_imports(open_files.pop()):
            if name.startswith("imagepipe"):
                parents = [".".join(name.split(".")[:depth]) for depth in range(1, name.count(".") + 2)]
                for module in filter(None, map(find_module, parents)):
                    if module not in found:
                        found.add(module)
                        open_files.append(module)
    return found


def get_package(module: Path) -> str:
    return module.relative_to(SRC / "imagepipe").parts[0].removesuffix(".py")


MODULES = sorted(path for path in (SRC / "imagepipe").rglob("*.py") if path != SRC / "imagepipe" / "__init__.py")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_all_that_it_imports_and_on_nothing_else_of_ours(stage: str) -> None:
    deps = {str(dep) for dep in read_pipeline()[stage]["deps"]}
    imported = close_over_imports(ROOT / "stages" / f"{stage}.py") - {SRC / "imagepipe" / "__init__.py"}
    packages = {f"src/imagepipe/{get_package(module)}" for module in imported}
    assert packages == {dep for dep in deps if dep.startswith("src/")}
    assert {f"stages/{stage}.py", "constraints.txt"} <= deps


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_tracks_its_own_section_and_what_else_it_reads(stage: str) -> None:
    also = {"split": ["fetch.path"], "evaluate": STAGES}
    assert read_pipeline()[stage]["params"] == sorted({stage, *also.get(stage, [])})


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_named_alike_in_its_description_script_and_command(stage: str) -> None:
    described = read_pipeline()[stage]
    assert str(described["desc"]).startswith(stage)
    assert str(described["cmd"]).startswith(f"python stages/{stage}.py ")


@pytest.mark.parametrize("stage", STAGES)
def test_no_value_of_the_params_stands_in_a_command_which_a_shell_reads(stage: str) -> None:
    assert "$" not in str(read_pipeline()[stage]["cmd"])


def test_there_are_just_the_five_stages_in_the_order_of_the_way() -> None:
    assert tuple(read_pipeline()) == STAGES


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(SRC)))
def test_imports_go_one_way(module: Path) -> None:
    allowed = WAY[: WAY.index(get_package(module)) + 1]
    imported = {get_package(path) for path in map(find_module, list_imports(module)) if path and path in MODULES}
    assert imported <= set(allowed)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(SRC)))
def test_only_marked_modules_import_torch(module: Path) -> None:
    tree = ast.parse(module.read_text("utf-8"))
    if any(name.split(".")[0] in ("torch", "torchvision") for name in list_imports(module)):
        assert get_package(module) in TORCH_PACKAGES or module.name == TORCHVISION_AT_FETCH
        assert "[torch]" in module.read_text("utf-8")
    assert ast.get_docstring(tree)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(SRC)))
def test_no_module_uses_assert_or_runs_anything_when_imported(module: Path) -> None:
    tree = ast.parse(module.read_text("utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    calls = [node for node in tree.body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)]
    assert not calls


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(SRC)))
def test_every_module_has_a_mirror_among_the_tests(module: Path) -> None:
    inside = module.relative_to(SRC / "imagepipe")
    if inside.name == "__init__.py" and len(inside.parts) == 2:
        names = [f"test_{inside.parts[0]}.py"] if len(module.read_text("utf-8").splitlines()) > 1 else []
        mirrors = [ROOT / "tests" / inside.parts[0] / name for name in names]
    else:
        mirrors = [ROOT / "tests" / inside.parent / f"test_{inside.name}"]
    assert all(mirror.is_file() for mirror in mirrors)


def test_every_output_is_ignored_by_git_but_the_metrics() -> None:
    outs = [path for stage in read_pipeline().values() for path in list_paths(stage["outs"])]
    metrics = [path for stage in read_pipeline().values() for path in list_paths(stage.get("metrics", []))]
    check = ["git", "check-ignore", "--no-index"]
    ignored = subprocess.run([*check, *outs], cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert sorted(ignored) == sorted(outs)
    assert not subprocess.run([*check, *metrics], cwd=ROOT, capture_output=True, text=True).stdout


def list_paths(entries: object) -> list[str]:
    assert isinstance(entries, list)
    return [next(iter(entry)) if isinstance(entry, dict) else str(entry) for entry in entries]


def test_no_file_names_a_package_index_or_a_path_of_one_machine() -> None:
    words = [
        "pypi" + ".org",
        "python" + "hosted.org",
        "registry." + "npmjs",
        "deb" + "ian.org",
        "/ro" + "ot/",
        "/wo" + "rk/",
    ]
    found = subprocess.run(
        ["git", "grep", "-nIF", *[part for word in words for part in ("-e", word)]],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert found.stdout == ""


BLOCK_TORCH = """
import runpy, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision"):
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Blocker())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_fetch_split_and_balance_run_without_torch(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text("utf-8"), "utf-8")
    (tmp_path / "data" / "classes").mkdir(parents=True)
    (tmp_path / "data" / "classes" / "all.csv").write_bytes((ROOT / "data" / "classes" / "all.csv").read_bytes())
    for arguments in (
        ["fetch.py", "raw"],
        ["split.py", "raw", "images", "manifests"],
        ["balance.py", "manifests", "balance"],
    ):
        script = str(ROOT / "stages" / arguments[0])
        done = subprocess.run(
            [sys.executable, "-c", BLOCK_TORCH, script, *arguments[1:]], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "balance" / "balance.json").is_file()


def test_the_package_itself_imports_nothing_heavy() -> None:
    code = "import imagepipe, sys; print([name for name in ('torch', 'pandas', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
