"""Download of the released weights, from a local server."""

import contextlib
import functools
import http.server
import socket
import sys
import threading
import time
import urllib.error

import pytest
import torch
import torchvision


class Handler(http.server.BaseHTTPRequestHandler):
    """Serve `files`; some names simulate faults."""

    files: dict[str, bytes] = {}
    requests: list[str] = []

    def do_GET(self):
        self.requests.append(self.path)
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
        with contextlib.suppress(BrokenPipeError):  # the client has disconnected
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def server(module_path):
    """URL of a server, and the state dict in its file `good`."""
    torch.manual_seed(0)
    state = {f"module.{k}": v for k, v in torchvision.models.resnet18().state_dict().items()}
    path = module_path / "good.pth"
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
    """An empty hub cache."""
    pytest.importorskip("gdown")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path))
    yield tmp_path / "checkpoints"
    torch.hub.set_dir(before)


def test_weights_are_downloaded_once_and_checked(imagenet, server, hub):
    url, state = server
    download = functools.partial(
        imagenet.download.download_released_weights, "resnet18", f"{url}/good"
    )
    path = download()
    assert list(hub.iterdir()) == [path]
    loaded = imagenet.weights.read_checkpoint(path).state_dict
    assert torch.equal(loaded["fc.weight"], state["module.fc.weight"])
    count = len(Handler.requests)
    assert download() == path and len(Handler.requests) == count
    path.write_bytes(b"damaged")
    with pytest.raises(
        imagenet.command_line.UserError, match="remove the file to download it again"
    ):
        download()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("page", "web page"),
        ("cut", "received"),
        ("shortened", "can't be loaded"),
        ("other", "missing keys conv1.weight"),
        ("empty", "can't be loaded"),
        ("missing", "404"),
        ("loop", "redirects"),
        ("silent", "timed out"),
    ],
)
def test_a_bad_download_leaves_nothing_in_the_cache(imagenet, server, hub, name, message):
    with pytest.raises(imagenet.command_line.UserError, match=message) as raised:
        imagenet.download.download_released_weights(
            "resnet18", f"{server[0]}/{name}", timeout_s=0.5
        )
    assert str(raised.value).startswith("open https://drive.google.com/file/d/1P5QA")
    assert "--model_path FILE" in str(raised.value)
    assert str(hub) not in str(raised.value)  # the temporary file is gone
    assert list(hub.iterdir()) == []


def test_a_missing_server_is_refused(imagenet, hub):
    # The last cause alone, instead of urllib's chain.
    with pytest.raises(imagenet.command_line.UserError, match="failed: Connection refused$"):
        imagenet.download.download_released_weights("resnet18", "http://127.0.0.1:9/good")
    assert list(hub.iterdir()) == []


def test_networks_without_released_weights_are_refused(imagenet, hub):
    with pytest.raises(imagenet.command_line.UserError, match="resnet18, resnet50, resnet152"):
        imagenet.download.download_released_weights("resnet34")


def test_a_failed_download_of_torchvisions_weights_says_what_to_do(imagenet, monkeypatch):
    def fail(arch, weights):
        error = socket.gaierror(-2, "Name or service not known")
        raise urllib.error.URLError(error) from error

    monkeypatch.setattr("torchvision.models.get_model", fail)
    with pytest.raises(imagenet.command_line.UserError) as raised:
        imagenet.pretrained.load_torchvision("resnet50", "IMAGENET1K_V1")
    assert str(raised.value) == (
        "--torchvision-weights IMAGENET1K_V1: connect to the internet and try again, or download "
        "https://download.pytorch.org/models/resnet50-0676ba61.pth elsewhere and give it as "
        "--model_path FILE; the download failed: Name or service not known"
    )


def test_a_missing_gdown_is_named(imagenet, hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(imagenet.command_line.UserError, match="pip install gdown"):
        imagenet.download.download_released_weights("resnet50")
