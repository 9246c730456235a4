"""Download of the released weights from a faulty server."""

import contextlib
import functools
import http.server
import time
from pathlib import Path

import torch
import torchvision

from torture.attempts import Attempt, Fault, expect, expect_success_or_user_error
from torture.children import POLL_S, Child
from torture.scripts import EVALUATION, IMAGENET

# Faults that the server simulates, and whether the download should succeed.
KINDS = {
    "good": True,
    "slow": True,
    "silent": False,
    "cut": False,
    "short": False,
    "long": True,  # more than the announced length, which is ignored
    "page": False,
    "empty": False,
    "other": False,
    "missing": False,
    "loop": False,
    "no-server": False,
    "no-cache": False,
}


class Handler(http.server.BaseHTTPRequestHandler):
    """Serve `good`, or simulate the fault in the path."""

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
        with contextlib.suppress(OSError):  # the client disconnects
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

    def log_message(self, *argv) -> None:
        pass


def prepare(attempt: Attempt) -> None:
    torch.manual_seed(0)
    good = torchvision.models.resnet18().state_dict()
    torch.save(good, attempt.shared / "good", _use_new_zipfile_serialization=False)
    torch.save(torchvision.models.squeezenet1_1().state_dict(), attempt.shared / "other")


def download(attempt: Attempt) -> None:
    """Run `--download-only` with that server."""
    kind = list(KINDS)[attempt.index % len(KINDS)]
    Handler.good, Handler.other = ((attempt.shared / n).read_bytes() for n in ("good", "other"))
    hub = attempt.folder / "hub"
    if kind == "no-cache":
        hub.touch()
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        url = f"http://127.0.0.1:{server.server_port}/{kind}"
        serving = Child("server", server.serve_forever, attempt.folder / "server")
    if kind == "no-server":
        serving.wait(0)

    def before() -> None:
        torch.hub.set_dir(str(hub))
        IMAGENET.main.download_released_weights = functools.partial(
            IMAGENET.download.download_released_weights, url=url, timeout_s=1
        )

    result = attempt.run(EVALUATION, ["-a", "resnet18", "--download-only"], before)
    serving.wait(POLL_S)
    expect_success_or_user_error(result)
    expect_cache(attempt, hub, result.status == 0)
    expect(
        (result.status == 0) == KINDS[kind],
        f"{kind}: expected {'success' if KINDS[kind] else 'an error'}",
        result,
    )


def expect_cache(attempt: Attempt, hub: Path, filled: bool) -> None:
    """Expect only the complete file in the cache, or nothing."""
    files = list((hub / "checkpoints").iterdir()) if hub.is_dir() else []
    complete = [path.read_bytes() == Handler.good for path in files]
    expect(complete == [True] * filled, "unexpected files in the cache", files)


FAULTS = [
    Fault(
        "download",
        "download of weights: slow, silent or missing server, truncated file, wrong size, web "
        "page, another network, redirect loop, unwritable cache",
        20,
        "success or one-line error; only a complete file in the cache",
        download,
        prepare,
    ),
]
