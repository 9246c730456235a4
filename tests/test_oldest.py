"""make test-oldest: the lower bounds of requirements.txt are what is installed and tested."""

import re
import shutil
import subprocess

from conftest import ROOT

PYTHON = """#!/bin/sh
# Stands for Python: notes its words, and makes an environment with a copy of itself.
echo "$@" >> "{notes}"
if [ "$2" = venv ]; then mkdir -p "$4/bin" && cp "$0" "$4/bin/python"; fi
"""


def test_the_oldest_versions_are_installed_and_tested(tmp_path):
    for name in ("Makefile", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python, notes = tmp_path / "python", tmp_path / "notes"
    python.write_text(PYTHON.format(notes=notes))
    python.chmod(0o755)
    command = ["make", "test-oldest", f"PYTHON={python}"]
    for _ in range(2):  # the second time, all is installed
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    venv, install, *tests = notes.read_text().splitlines()
    assert venv == "-m venv --clear .venv/oldest" and tests == ["-m pytest"] * 2
    assert install.endswith("-r .venv/oldest/requirements.txt -r requirements-dev.txt")
    pins = re.findall(
        r"^(\w+)==(\d[\d.]*)$", (tmp_path / ".venv/oldest/requirements.txt").read_text(), re.M
    )
    bounds = re.findall(r"^(\w+)>=(\d[\d.]*)$", (ROOT / "requirements.txt").read_text(), re.M)
    assert pins == bounds and ("torch", "2.6") in bounds
