"""The layout: shared files are equal, script folders run alone, every option is used."""

import ast
import os
import resource
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from synthetic import write_folders


def shared_files(folder):
    """Return the contents of the files that both script folders must have, by relative path."""
    paths = [folder / "synergy.py", *(folder / "common").glob("*.py")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_both_folders_have_the_same_loss_and_common():
    shared = shared_files(ROOT / "wrn_DKS")
    assert shared == shared_files(ROOT / "imagenet")
    assert len(shared) > 5


def test_no_other_file_is_duplicated():
    names = [{path.name for path in (ROOT / f).iterdir()} for f in ("wrn_DKS", "imagenet")]
    for name in set.intersection(*names) - {"synergy.py", "common", "__pycache__"}:
        one, other = (ROOT / folder / name for folder in ("wrn_DKS", "imagenet"))
        assert one.read_bytes() != other.read_bytes()


def run_copy(python, name, tmp_path, script, *words):
    """Copy a script folder and run a script in the copy; return the copy and the output."""
    copy = tmp_path / "elsewhere"
    shutil.copytree(ROOT / name, copy)
    done = python.run(copy / script, *words, path=[copy], cwd=copy)
    assert done.returncode == 0, done.stderr
    return copy, done.stdout


def test_wrn_dks_runs_when_copied_away(python, tmp_path):
    words = "main.py --dataset digits --depth 10 --width 0.25 --epochs 1 --batch_size 512"
    copy, out = run_copy(python, "wrn_DKS", tmp_path, *words.split(), "--save", "run")
    assert "test error of the backbone" in out
    assert (copy / "run" / "checkpoint.pt").exists()


def test_imagenet_runs_when_copied_away(python, tmp_path):
    for split in ("train", "val"):
        write_folders(tmp_path / "images", {"cat": 2, "dog": 2}, split)
    words = "train.py --method baseline --image-size 33 --epochs 1 -j 0 -b 4 --save run".split()
    copy, out = run_copy(python, "imagenet", tmp_path, *words, tmp_path / "images")
    assert "epoch 1/1" in out
    assert (copy / "run" / "checkpoint.pt").exists()


def config_reads(path, options):
    """Return the fields of the `Config` of the module `options` that a file reads.

    Other classes have fields of the same names, and both scripts of imagenet/ have a `Config`.
    """
    tree, read = ast.parse(path.read_text()), set()
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    if any(node.module == options and "Config" in {a.name for a in node.names} for node in imports):
        read |= attributes(tree, "config")
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    if path.stem == options:
        (config,) = (node for node in classes if node.name == "Config")
        read |= attributes(config, "self")
    return read


def attributes(tree, owner):
    """Return the attributes of the variable `owner` that are read somewhere in a syntax tree."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == owner
    }


@pytest.mark.parametrize(
    ("name", "options"),
    [("wrn_DKS", "options"), ("imagenet", "options"), ("imagenet", "train_options")],
)
def test_every_option_is_used(request, name, options):
    """Some module, other than the one that checks the options, reads each field of `Config`."""
    scripts = request.getfixturevalue({"wrn_DKS": "wrn"}.get(name, name))
    read = set().union(*(config_reads(path, options) for path in scripts.path.glob("*.py")))
    fields = set(getattr(scripts, options).Config.__dataclass_fields__)
    assert fields - read == set()


def test_literals_of_the_flags_are_those_of_the_modules(wrn):
    """The flags do not import the modules, which import torch."""
    assert wrn.flags.IMAGE_SIZES == wrn.data.IMAGE_SIZES
    assert wrn.flag_groups.METHODS == wrn.synergy.METHODS
    assert tuple(wrn.synergy.DIRECTIONS) == wrn.flag_groups.DIRECTIONS


def test_help_of_wrn_dks_does_not_import_torch(wrn):
    """CPU time; much of it is Python's own start."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "main.py", "--help"],
        cwd=wrn.path,
        capture_output=True,
        text=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.startswith("usage: main.py")
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported and not imported & {"torch", "torchvision", "numpy"}
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5


@pytest.mark.parametrize(("given", "used"), [({}, "passive"), ({"OMP_WAIT_POLICY": "x"}, "x")])
def test_threads_wait_passively_unless_the_user_chooses(wrn, given, used):
    """The policy is set before torch is imported, which reads it."""
    code = (
        "import os, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'torch':\n"
        "            sys.exit(os.environ['OMP_WAIT_POLICY'])\n"
        "sys.meta_path.insert(0, Finder())\n"
        "import main"
    )
    environment = {key: v for key, v in os.environ.items() if key != "OMP_WAIT_POLICY"} | given
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=wrn.path, env=environment, capture_output=True, text=True
    )
    assert done.stderr.strip() == used


def test_help_lists_every_flag_with_its_default(wrn, capsys):
    with pytest.raises(SystemExit):
        wrn.main.main(["--help"])
    text = capsys.readouterr().out
    for flag in (
        "--depth --width --dropout --dataset --dataroot --nthread --seed --batch_size --lr "
        "--epochs --weight_decay --epoch_step --lr_decay_ratio --resume --save --dtype --ngpu "
        "--gpu_id --method --direction --aux-weight --synergy-weight --image-size --device "
        "--evaluate --export -j --workers -b --lr-milestones --milestones --lr-factor --model_path "
        "--predict --json"
    ).split():
        assert flag in text
    assert "[60,120,160]" in text and "(default: 200)" in text
    assert "default: None" not in text and "(default: )" not in text


def test_flags_of_imagenet_work_in_wrn_dks(wrn):
    """Where they mean the same, under the same name."""
    for words, name, value in (
        ("-j 3", "nthread", 3),
        ("--workers 3", "nthread", 3),
        ("-b 7", "batch_size", 7),
        ("--batch-size 7", "batch_size", 7),
        ("--lr-factor 0.5", "lr_decay_ratio", 0.5),
        ("--weight-decay 0.5", "weight_decay", 0.5),
        ("--gpu_id 1", "device", "cuda:1"),
    ):
        assert getattr(wrn.options.parse(words.split()), name) == value


def test_defaults_are_the_recipe_of_the_paper(wrn):
    config = wrn.options.parse([])
    assert (config.dataset, config.depth, config.width, config.method) == (
        "CIFAR100",
        28,
        10,
        "dks",
    )
    assert (config.epochs, config.batch_size, config.lr) == (200, 128, 0.1)
    assert (config.epoch_step, config.lr_decay_ratio) == ((60, 120, 160), 0.2)
    assert (config.weight_decay, config.dropout, config.dtype) == (5e-4, False, "float32")
    assert (config.aux_weight, config.synergy_weight, config.direction) == (1, 1, "bidirectional")
    assert wrn.engine.MOMENTUM == 0.9
