"""The download of released weights from a server that is slow, wrong, or not there."""

import contextlib
import functools
import http.server
import time
from pathlib import Path

import torch
import torchvision

from torture.attempts import Attempt, Fault, expect, expect_done_or_refused
from torture.children import POLL_S, Child
from torture.scripts import EVALUATION, IMAGENET

# What the server does under each name, and whether the weights should then be in the cache.
KINDS = {
    "good": True,
    "slow": True,
    "silent": False,
    "cut": False,
    "short": False,
    "long": True,  # than it says: what comes after its end is not read
    "page": False,
    "empty": False,
    "other": False,
    "missing": False,
    "loop": False,
    "no-server": False,
    "no-cache": False,
}


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with `good`, or not quite."""

    good = b""
    other = b""

    def do_GET(self) -> None:
        name = self.path.strip("/")
        if name == "loop":
            self.send_response(302)
            self.send_header("Location", "/loop")
            self.end_headers()
            return
        if name == "missing":
            self.send_error(404)
            return
        with contextlib.suppress(OSError):  # the client gives up
            self.answer(name)

    def answer(self, name: str) -> None:
        content = {
            "short": self.good[: len(self.good) // 2],
            "page": b"<!DOCTYPE html><title>Google Drive - Quota exceeded</title>",
            "empty": b"",
            "other": self.other,
        }.get(name, self.good)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if name == "silent":
            time.sleep(5)
        if name == "cut":
            content = content[: len(content) // 2]
        if name == "slow":
            for start in range(0, len(content), len(content) // 8):
                self.wfile.write(content[start : start + len(content) // 8])
                time.sleep(0.2)
            return
        self.wfile.write(content + b"and more" * (name == "long"))

    def log_message(self, *arguments) -> None:
        pass


def prepare(attempt: Attempt) -> None:
    torch.manual_seed(0)
    good = torchvision.models.resnet18().state_dict()
    torch.save(good, attempt.shared / "good", _use_new_zipfile_serialization=False)
    torch.save(torchvision.models.squeezenet1_1().state_dict(), attempt.shared / "other")


def download(attempt: Attempt) -> None:
    """`--download-only` from that server."""
    kind = list(KINDS)[attempt.index % len(KINDS)]
    Handler.good, Handler.other = ((attempt.shared / n).read_bytes() for n in ("good", "other"))
    hub = attempt.folder / "hub"
    if kind == "no-cache":
        hub.touch()
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        address = f"http://127.0.0.1:{server.server_port}/{kind}"
        serving = Child("server", server.serve_forever, attempt.folder / "server")
    if kind == "no-server":
        serving.wait(0)

    def before() -> None:
        torch.hub.set_dir(str(hub))
        fetch = IMAGENET.download.fetch
        IMAGENET.main.fetch = functools.partial(fetch, address=address, timeout_s=1)

    ended = attempt.run(EVALUATION, ["-a", "resnet18", "--download-only"], before)
    serving.wait(POLL_S)
    expect_done_or_refused(ended)
    expect_cache(attempt, hub, ended.status == 0)
    expect((ended.status == 0) == KINDS[kind], f"{kind}: expected otherwise", ended)


def expect_cache(attempt: Attempt, hub: Path, filled: bool) -> None:
    """The cache holds the whole file and nothing else; or nothing at all."""
    found = list((hub / "checkpoints").iterdir()) if hub.is_dir() else []
    whole = [path.read_bytes() == Handler.good for path in found]
    expect(whole == [True] * filled, "in the cache", found)


FAULTS = [
    Fault(
        "download",
        "the download of weights: slow, silent, cut off, a web page, of the wrong size, of "
        "another network, a loop of redirects, no server, a cache that can't be written",
        20,
        "one line, and nothing in the cache but a whole file",
        download,
        prepare,
    ),
]
