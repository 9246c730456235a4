"""What README.md and docs/*.md contain: commands, examples, links, anchors, names in backticks."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from conftest import ROOT

README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")))
NOT_RUN = "# not run by the tests"  # followed by `: ` and the reason


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command of a block without a language; `folder` is where a `cd` before it leads."""

    folder: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.folder}> {shlex.join(self.words)}"


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(page, language, text) for language, text in found]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands() -> list[Command]:
    """Every command of every page, each once, except those that are marked as not run.

    The mark stands at the end of a command's line, or on a line of its own for the rest of the
    block.
    """
    found = [
        command
        for page in PAGES
        for block in blocks(page)
        if not block.language
        for command in block_commands(block.text)
    ]
    return list(dict.fromkeys(found))


def block_commands(text: str) -> Iterator[Command]:
    folder = "."
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith(NOT_RUN):
            return
        words = shlex.split(line, comments=True)
        if words[:1] == ["cd"]:
            folder = words[1]
        elif words and NOT_RUN not in line:
            yield Command(folder, tuple(words))


def marks() -> list[str]:
    """What follows each mark of a command that is not run."""
    return [rest for page in PAGES for rest in re.findall(f"{NOT_RUN}(.*)", page.read_text())]


def examples() -> list[Block]:
    """The Python examples of all pages."""
    return [block for page in PAGES for block in blocks(page) if block.language == "python"]


def links(page: Path) -> list[str]:
    """The targets of all links and images, addresses of the web aside."""
    targets = re.findall(r"\]\(([^()\s]+)\)", prose(page))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def spans(page: Path) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", prose(page))
