"""study/: the commands that train a study, and the test of trained networks."""

import json

import pytest
from conftest import ROOT
from halves import records

# With a plan of two rows, and a script in the place of main.py.
RUN = """
import sys
from pathlib import Path

sys.path[:0] = sys.argv[1:3]
del sys.argv[1:3]

import plan
import run

plan.SCALED.rows.clear()
plan.SCALED.rows.update({"baseline": 1, "dks-top-down": 2})
run.CLASSES, run.IMAGES, run.MAIN = 3, 3, Path(__file__).with_name("main.py")
run.run_script(run.main)
"""
MAIN = """
import shutil
import sys
from pathlib import Path

options = dict(word.removeprefix("--").split("=") for word in sys.argv[1:])
shutil.copytree(Path(__file__).parent / "logs" / options["method"], options["save"])
print(*sys.argv[1:])
sys.exit("no second run" if options["seed"] == "2" else 0)
"""
VERIFY = """
import sys
from pathlib import Path

sys.path.insert(0, sys.argv.pop(1))

import verify

verify.WEIGHTS = verify.LOGS = Path(sys.argv.pop(1))
verify.run_script(verify.main)
"""


def test_runs_of_a_study(wrn, wrn_half, python, tmp_path):
    for name, text in {"script.py": RUN, "main.py": MAIN}.items():
        (tmp_path / name).write_text(text)
    for method in ("baseline", "dks"):
        words = ("--method", method, "--epochs", 1)
        assert wrn_half.train(tmp_path / "logs" / method, *words) == 0
    words = (tmp_path / "script.py", ROOT / "study", ROOT / "wrn_DKS", "--data", wrn_half.data)

    done = python.run(*words, "--out", tmp_path / "one", "--jobs", 2, "--seeds", 1)
    assert done.returncode == 0, done.stderr
    assert {"baseline-seed1: done", "dks-top-down-seed1: done"} < set(done.stdout.splitlines())
    assert "| dks " in done.stdout  # the table
    folder = tmp_path / "one" / "scaled"
    config = wrn.flags.parse((folder / "dks-top-down-seed1.txt").read_text().split())
    assert (config.direction, config.depth, config.epochs) == ("top-down", 16, 625)
    assert config.resume == "auto" and config.save == folder / "dks-top-down-seed1"
    for part, first in (("train", "00000-cat_0.png"), ("test", "00003-cat_3.png")):
        images = sorted(config.dataroot.glob(f"{part}/*/*.png"))
        assert images[0].name == first and len(images) == 9

    done = python.run(*words, "--out", tmp_path / "two")
    assert done.returncode == 2 and "error: 1 of 3 runs failed; see" in done.stderr
    assert "no second run" in (tmp_path / "two/scaled/dks-top-down-seed2.txt").read_text()


@pytest.fixture
def verify(wrn_half, python, tmp_path):
    """Test the networks in `tmp_path`/; return the status, the last row, and the errors."""
    (tmp_path / "script.py").write_text(VERIFY)

    def verify():
        words = (tmp_path / "script.py", ROOT / "study", tmp_path, wrn_half.data)
        done = python.run(*words)
        return done.returncode, done.stdout.splitlines()[-1:], done.stderr

    return verify


def test_networks_have_the_errors_of_their_logs(verify, wrn_half, tmp_path):
    status, rows, error = verify()
    assert (status, rows) == (2, []) and "no resnet32-cifar100-METHOD.safetensors" in error
    weights = tmp_path / "resnet32-cifar100-ds.safetensors"
    words = ("--method", "ds", "--epochs", 1, "--export", weights)
    assert wrn_half.train(tmp_path / "run", *words) == 0
    (record,) = records(tmp_path / "run")
    errors = record["test"]["top1_errors"]
    (tmp_path / "cifar100").mkdir()
    for difference, expected in ((0.0, 0), (0.05, 0), (0.5, 1)):
        test = {
            f"test_acc{key}": 100 - each
            for key, each in zip(("", "_ep1", "_ep2"), errors, strict=True)
        }
        test |= {"test_error_ensemble": 50.0, "train_acc": 50.0}
        test["test_acc"] += difference
        lines = [
            json.dumps(each) + "\n" for each in ({"epoch": 0, "epochs": 1}, {"epoch": 1} | test)
        ]
        (tmp_path / "cifar100" / "ds-seed1.jsonl").write_text("".join(lines))
        status, rows, error = verify()
        assert status == expected, error
        logged = errors[0] - difference
        assert rows == [f"| ds | {errors[0]:.2f} | {logged:.2f} | {difference:+.2f} |"]
