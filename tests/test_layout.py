"""The layout: shared files are equal, script folders run alone, files and functions are short."""

import ast
import shutil

import pytest
from conftest import ROOT

FOLDERS = ("wrn_DKS", "imagenet")
MAX_LINES, MAX_FUNCTION_LINES = 260, 45


def syntax_trees(folder):
    """Return the syntax trees of a script folder by module, such as `common.engine`."""
    paths = {path.relative_to(folder).with_suffix(""): path for path in folder.rglob("*.py")}
    return {".".join(name.parts): ast.parse(path.read_text()) for name, path in paths.items()}


def imported(tree):
    """Return the modules, or their parents and attributes, that a module imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, ("common" * bool(node.level), node.module)))
            found |= {base, *(f"{base}.{each.name}" for each in node.names)}
    return found


def test_both_folders_have_the_same_loss_and_common():
    shared = []
    for folder in (ROOT / name for name in FOLDERS):
        paths = [folder / "synergy.py", *(folder / "common").glob("*.py")]
        shared.append({path.relative_to(folder): path.read_bytes() for path in paths})
    assert shared[0] == shared[1] and len(shared[0]) > 5


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_have_no_cycle_and_common_imports_only_itself(folder):
    trees = syntax_trees(ROOT / folder)
    uses = {name: imported(tree) & set(trees) - {name} for name, tree in trees.items()}
    assert uses["common.engine"] and uses["report"] == {"common.command_line", "common.report"}
    for name, used in uses.items():
        if name.startswith("common"):
            assert all(each.startswith("common") for each in used), name
    while free := [name for name, used in uses.items() if not used & set(uses)]:
        for name in free:
            del uses[name]
    assert not uses


def test_files_and_functions_are_short():
    too_long = {}
    for folder in (*FOLDERS, "study", "benchmarks"):
        for name, tree in syntax_trees(ROOT / folder).items():
            path = ROOT / folder / f"{name.replace('.', '/')}.py"
            too_long[f"{folder}/{name}"] = len(path.read_text().splitlines()) - MAX_LINES
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef):
                    lines = node.end_lineno - node.lineno + 1
                    too_long[f"{folder}/{name}: {node.name}"] = lines - MAX_FUNCTION_LINES
    assert {name: lines for name, lines in too_long.items() if lines > 0} == {}


def test_each_folder_runs_when_copied_away(half, python, tmp_path):
    """Without the other folder: training, the test of the result, and the report."""
    copy = tmp_path / "elsewhere"
    ignored = shutil.ignore_patterns("__pycache__", "logs", "data")
    shutil.copytree(half.scripts.path, copy, ignore=ignored)

    def run(script, *words, **variables):
        done = python.run(copy / script, *words, path=[copy], cwd=copy, variables=variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    more = ("--method", "baseline", "--epochs", 1, *["--image-size", 33] * (not half.is_wrn))
    assert "epoch 1/1" in run("main.py" if half.is_wrn else "train.py", *half.argv("run", *more))
    words = ("--evaluate", "--resume", "run") if half.is_wrn else (half.data, "--model_path", "run")
    assert "top-1 error" in run("main.py", *words)
    words = ("run", "--figure", "x.png")
    assert "| baseline" in run("report.py", *words, MPLBACKEND="nonsense")  # which is not used
    assert (copy / "x.png").exists()
