"""imagenet/main.py: invalid input is refused in one line that says what to do."""

import functools

import pytest
import torch
import torchvision
from evaluation import NETWORK, run_main, write_checkpoint, write_validation_set
from synthetic import save_weights


@pytest.fixture(scope="module")
def data(imagenet, tmp_path_factory):
    return write_validation_set(imagenet, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("weights") / "a.pth")


@pytest.fixture
def run(imagenet, capsys):
    return functools.partial(run_main, imagenet, capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["DATA"], "no weights"),
        (["DATA", "--pretrained", "--model_path", "WEIGHTS"], "several sources of weights"),
        (["DATA", "--model_path", "nowhere.pth"], "nowhere.pth: no such file"),
        (["DATA", "--model_path", "WEIGHTS"], "does not fit the network: missing keys"),
        (["DATA", "-a", "resnet19", "--model_path", "WEIGHTS"], "resnet19: expected resnet18"),
        (["nowhere", *NETWORK, "WEIGHTS"], "nowhere: no such folder"),
        ([*NETWORK, "WEIGHTS"], "no data"),
        (["DATA", *NETWORK, "WEIGHTS", "--branches"], "no auxiliary branches"),
        (["DATA", "--pretrained", "--branches"], "--branches"),
        (["DATA", *NETWORK, "WEIGHTS", "--json", "nowhere/a.json"], "create it first"),
        (["DATA", *NETWORK, "WEIGHTS", "--json", "/dev/null"], "not a regular file"),
        (["DATA", *NETWORK, "WEIGHTS", "--json", ""], "not a regular file"),
        (["DATA", *NETWORK, "WEIGHTS", "--json", "WEIGHTS"], "this command reads it"),
        (["DATA", *NETWORK, "WEIGHTS", "--predict", "a.png"], "leave out the data folder"),
        ([*NETWORK, "WEIGHTS", "--branches", "--predict", "a.png"], "leave out --branches"),
        (["DATA", "--model_path", "WEIGHTS", "--export", "new.pth"], "leave out the data folder"),
        (["--model_path", "WEIGHTS", "--export", "new.pth", "--json", "a"], "leave out --json"),
        (["--model_path", "WEIGHTS", "--export", "new.pth", "--predict", "a"], "out --predict"),
        (["--model_path", "WEIGHTS", "--export", "WEIGHTS"], "this command reads it"),
        (["--download-only", "--export", "new.pth"], "leave out --export"),
        (["DATA", "--model_path", "DATA"], "checkpoint.pt: no such file"),
        (["DATA", "--dataroot", "elsewhere", "--pretrained"], "give one"),
        (["DATA", *NETWORK, "WEIGHTS", "--ngpu", "2"], "torchrun --nproc_per_node 2 main.py"),
        (["DATA", *NETWORK, "WEIGHTS", "--gpu_id", "0"], "not allowed with argument --device"),
        (["DATA", *NETWORK, "WEIGHTS", "--device", "cuda:99"], "cuda:99"),
        ([*NETWORK, "WEIGHTS", "--predict", "nowhere.png"], "nowhere.png: no such file"),
        (["--download-only", "--model_path", "WEIGHTS"], "several sources of weights"),
        (["--download-only", "DATA"], "leave out the data folder"),
        (["--download-only", "--predict", "a.png"], "leave out --predict"),
        (["--download-only", "-a", "resnet34"], "weights were released only for"),
        (["DATA", "--pretrained", "-a", "resnet34"], "weights were released only for"),
        (["DATA", *NETWORK, "WEIGHTS", "-j", "1025"], "from 0 to 1024"),
        (["DATA", *NETWORK, "WEIGHTS", "-b", "0"], "expected a whole number of at least 1"),
        (["DATA", *NETWORK, "WEIGHTS", "--no-such-flag"], "--no-such-flag"),
    ],
)
def test_invalid_arguments_are_refused_in_one_line(run, weights, data, arguments, message):
    paths = {"DATA": data, "WEIGHTS": weights}
    status, out, err = run(*(paths.get(word, word) for word in arguments))
    assert status == 2 and "Error rate" not in out
    assert message in err and err.startswith("error: ") and err.count("\n") == 1


def test_an_unreadable_image_in_a_worker_is_refused_in_one_line(
    python, imagenet, weights, tmp_path
):
    synsets = imagenet.validation_set.imagenet_synsets()
    broken = tmp_path / "val" / synsets[5] / "broken.jpg"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"not an image")
    argv = [*NETWORK, weights, tmp_path, "-j", "1"]
    done = python.run(imagenet.path / "main.py", *argv, path=[imagenet.path])
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {broken}: ")


def test_an_image_size_too_small_for_the_network_is_refused(run, data, tmp_path):
    model = torchvision.models.squeezenet1_1()
    path = save_weights(tmp_path / "a.pth", model.state_dict())
    status, _, err = run("-a", "squeezenet1_1", "--model_path", path, data, "--image-size", "8")
    assert status == 2 and "--image-size 8" in err


class FaultyNetwork(torch.nn.Module):
    """Raise an exception, or return constant logits."""

    def __init__(self, result):
        super().__init__()
        self.result = result

    def forward(self, images):
        if isinstance(self.result, Exception):
            raise self.result
        return (torch.full((len(images), 10), self.result),)


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "UserError", "-b"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "UserError", "-b"),
        (float("nan"), "UserError", "not finite for 4 image"),
        (RuntimeError("a bug"), "RuntimeError", "a bug"),
    ],
)
def test_out_of_memory_and_nonfinite_logits_are_user_errors(imagenet, result, error, message):
    loader = torch.utils.data.DataLoader([(torch.zeros(3, 8, 8), 0)] * 4, batch_size=2)
    kind = {"UserError": imagenet.command_line.UserError, "RuntimeError": RuntimeError}[error]
    with pytest.raises(kind, match=message):
        imagenet.evaluate.evaluate(FaultyNetwork(result), loader, torch.device("cpu"))
