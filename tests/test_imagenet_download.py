"""The download of the released weights, against a server on this machine."""

import contextlib
import functools
import http.server
import threading
import time

import pytest
import torch
import torchvision


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with the files in `files`, and with faults under other names."""

    files: dict[str, bytes] = {}
    asked: list[str] = []

    def do_GET(self):
        self.asked.append(self.path)
        if self.path == "/loop":
            self.send_response(302)
            self.send_header("Location", "/loop")
            self.end_headers()
            return
        content = self.files.get(self.path.strip("/"))
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.path == "/cut":
            content = content[: len(content) // 2]
        if self.path == "/silent":
            time.sleep(3)
        with contextlib.suppress(BrokenPipeError):  # the client has given up
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a server, and the state dict of its file `good`."""
    torch.manual_seed(0)
    state = {f"module.{k}": v for k, v in torchvision.models.resnet18().state_dict().items()}
    path = tmp_path_factory.mktemp("served") / "good.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    other = path.with_name("other.pth")
    torch.save(torchvision.models.squeezenet1_1().state_dict(), other)
    good = path.read_bytes()
    Handler.files = {
        "good": good,
        "cut": good,
        "silent": good,
        "shortened": good[: len(good) // 2],
        "other": other.read_bytes(),
        "page": b"\n<!DOCTYPE html><title>Google Drive - Quota exceeded</title>",
        "empty": b"",
    }
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", state
        running.shutdown()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of torch's hub."""
    pytest.importorskip("gdown")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path))
    yield tmp_path / "checkpoints"
    torch.hub.set_dir(before)


def test_a_good_file_enters_the_cache_once(imagenet, server, hub):
    address, state = server
    fetch = functools.partial(imagenet.download.fetch, "resnet18", f"{address}/good")
    path = fetch()
    assert list(hub.iterdir()) == [path]
    weights = imagenet.weights.read(path).weights
    assert torch.equal(weights["fc.weight"], state["module.fc.weight"])
    asked = len(Handler.asked)
    assert fetch() == path and len(Handler.asked) == asked
    path.write_bytes(b"damaged")
    with pytest.raises(imagenet.command_line.UserError, match="remove it"):
        fetch()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("page", "web page"),
        ("cut", "received"),
        ("shortened", "can't be loaded"),
        ("other", "lacks conv1.weight"),
        ("empty", "can't be loaded"),
        ("missing", "404"),
        ("loop", "redirects"),
        ("silent", "timed out"),
    ],
)
def test_anything_else_stays_out_of_it(imagenet, server, hub, name, message):
    with pytest.raises(imagenet.command_line.UserError, match=message) as refusal:
        imagenet.download.fetch("resnet18", f"{server[0]}/{name}", timeout_s=0.5)
    assert "drive.google.com/file/d/1P5QA" in str(refusal.value)
    assert "--model_path" in str(refusal.value)
    assert str(hub) not in str(refusal.value)  # where nothing is left
    assert list(hub.iterdir()) == []


def test_no_network_is_refused(imagenet, hub):
    with pytest.raises(imagenet.command_line.UserError, match="could not be fetched"):
        imagenet.download.fetch("resnet18", "http://127.0.0.1:9/good")
    assert list(hub.iterdir()) == []


def test_networks_without_released_weights_are_refused(imagenet, hub):
    with pytest.raises(imagenet.command_line.UserError, match="resnet18, resnet50, resnet152"):
        imagenet.download.fetch("resnet34")


def test_gdown_is_asked_for_where_it_is_missing(imagenet, hub, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gdown", None)
    with pytest.raises(imagenet.command_line.UserError, match="pip install gdown"):
        imagenet.download.fetch("resnet50")
