"""The documentation: its links, commands and Python blocks, and the numbers of the study."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "study/README.md"]
PAGES.append(ROOT / "weights/README.md")
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def commands() -> list[tuple[str, list[str]]]:
    """Return the command lines of the documentation: the script folder and the words."""
    found = []
    for page in PAGES:
        folder = ""
        for block in blocks(page, "(?:bash)?"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.partition(" #")[0]) if line.count("'") % 2 == 0 else []
                if words[:1] == ["cd"]:
                    folder = words[1]
                scripts = [i for i, word in enumerate(words) if word in ("main.py", "train.py")]
                if scripts and folder in ("wrn_DKS", "imagenet"):
                    found.append((folder, words[scripts[0] :]))
    return found


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_to_files_and_headings_that_exist(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
            slugs = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
            assert anchor in slugs, target


def test_commands_have_options_that_exist(wrn, imagenet):
    parsers = {
        ("wrn_DKS", "main.py"): wrn.flags.make_parser(),
        ("imagenet", "train.py"): imagenet.flags.make_parser(imagenet.flags.Config),
        ("imagenet", "main.py"): imagenet.flags.make_parser(imagenet.flags.EvaluationConfig),
    }
    checked = 0
    for folder, (script, *words) in commands():
        parser = parsers[folder, script]
        flags = {flag.replace("_", "-") for flag in parser._option_string_actions}
        for word in words:
            if word.startswith("--") and word != "--temperature":  # a change that is explained
                assert word.partition("=")[0].replace("_", "-") in flags, (folder, script, word)
                checked += 1
    assert checked > 40


def test_python_blocks_compile():
    found = [block for page in PAGES for block in blocks(page, "python")]
    assert len(found) > 3
    for block in found:
        compile(block, "a page", "exec")


def test_the_documentation_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
    assert sum(len(page.read_text().split()) for page in PAGES[:-1]) <= 9000


def test_tables_of_the_study_are_those_of_its_logs(tmp_path):
    printed = set()
    for preset in ("scaled", "follow-up"):
        words = [sys.executable, "study/report.py", "--preset", preset, "--images", str(tmp_path)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
        printed |= {line for line in done.stdout.splitlines() if line.startswith("|")}
    lines = (ROOT / "docs/study.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("|") and re.search(r"\.\d\d to [+-]", line)]
    assert len(rows) > 9
    assert set(rows) <= printed
    assert len(list(tmp_path.glob("*.png"))) == 4
