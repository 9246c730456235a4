"""What the README shows runs as it stands there."""

import os
import re
import subprocess
import sys

from conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_the_python_example_learns():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 24
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT / "wrn_DKS")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    totals = [float(word) for word in re.findall(r"total ([\d.]+)", done.stdout)]
    assert totals[-1] < 0.5 * totals[0]


def test_the_study_s_tables_are_those_of_its_logs(wrn):
    """As `study_report.py` prints them; what memory it counts is up to PyTorch's version."""
    preset, report = wrn.study_plan.PRESETS["scaled"], wrn.study_report
    study = wrn.study_log.read_study(ROOT / "wrn_DKS" / "study" / "scaled", preset)
    assert report.errors(study, preset) in README
    assert report.differences(study) in README
    assert report.classifiers(study) in README


def test_every_file_it_names_is_there():
    names = set(re.findall(r"`((?:wrn_DKS|imagenet|images|tests)/[\w./-]*)`", README))
    assert len(names) > 10
    assert [name for name in sorted(names) if not (ROOT / name).exists()] == []


def test_every_flag_it_names_exists(wrn, imagenet, capsys):
    known = set()
    scripts = [wrn.main, wrn.report, wrn.study, wrn.study_report, wrn.benchmark]
    scripts += [imagenet.main, imagenet.train, imagenet.report, imagenet.benchmark]
    for module in scripts:
        try:
            module.main(["--help"])
        except SystemExit:
            known |= set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out))
    torchruns = "--nproc-per-node --nnodes --max-restarts --rdzv-backend --rdzv-endpoint --rdzv-id"
    slurms = "--nodes --ntasks-per-node --gpus-per-node --cpus-per-task --time --signal --requeue"
    spelled = {flag.replace("_", "-") for flag in known} | {*torchruns.split(), *slurms.split()}
    used = {flag.replace("_", "-") for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", README)}
    assert used - spelled == set()
