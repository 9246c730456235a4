"""Test the networks in weights/ on CIFAR-100, and compare their errors with those in the logs.

    python study/verify.py DIR

DIR holds the files of CIFAR-100, or its images in DIR/train/<class> and DIR/test/<class>.
"""

import contextlib
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(1, str(Path(__file__).parents[1] / "wrn_DKS"))  # after the folder of this file

import main as wrn_dks
from common.command_line import ArgumentParser, Incomplete, UserError, run_script
from common.options import METHODS
from logs import LOGS, LoggedRun

WEIGHTS = Path(__file__).parents[1] / "weights"
ROUNDING = 0.1  # points: in bfloat16, other processors round differently


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(prog="study/verify.py", description="Test the networks in weights/.")
    parser.add_argument("data", type=Path, metavar="DIR", help="folder of CIFAR-100")
    data = parser.parse_given(argv)["data"]
    errors = {}
    for method in METHODS:
        path = WEIGHTS / f"resnet32-cifar100-{method}.safetensors"
        if path.is_file():
            log = LoggedRun(LOGS / "cifar100" / f"{method}-seed1.jsonl")
            errors[method] = top1_error(path, data), log.errors["backbone"]
    if not errors:
        raise UserError(f"{WEIGHTS}: no resnet32-cifar100-METHOD.safetensors in it")
    print("| method | top-1 error, % | in the log, % | difference |\n| --- | --- | --- | --- |")
    for method, (error, logged) in errors.items():
        print(f"| {method} | {error:.2f} | {logged:.2f} | {round(error - logged, 2) + 0.0:+.2f} |")
    if any(abs(error - logged) > ROUNDING for error, logged in errors.values()):
        raise Incomplete(f"an error differs from that of its log by more than {ROUNDING} points")


def top1_error(weights: Path, data: Path) -> float:
    """Return the top-1 error of a network in percent, as `main.py --evaluate` finds it."""
    dataset = "folder" if (data / "train").is_dir() else "CIFAR100"
    with TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        result = Path(folder) / "result.json"
        words = ["--evaluate", f"--resume={weights}", f"--json={result}"]
        words += [f"--dataset={dataset}", f"--dataroot={data}"]
        wrn_dks.main(words)
        return json.loads(result.read_text())["top1_error"]


if __name__ == "__main__":
    run_script(main)
