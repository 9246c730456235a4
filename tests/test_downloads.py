"""Downloads with several processes: one process of each machine downloads, the others wait."""

import hashlib
import tarfile

import pytest
import torch
import torchvision

RANKS = {"RANK": "9", "LOCAL_RANK": "1"}  # of a process that must not download


@pytest.fixture
def second_process(monkeypatch):
    for name, value in RANKS.items():
        monkeypatch.setenv(name, value)


def refuse(*args, **options):
    pytest.fail("downloaded by a process that must wait")


def create_when_polled(downloads, monkeypatch, path):
    """Create a file while a process waits for it: when it pauses for the third time."""
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) == 3:
            path.write_text("content")

    monkeypatch.setattr(downloads.time, "sleep", sleep)
    return pauses


def test_the_first_process_of_a_machine_downloads_what_is_missing(wrn, monkeypatch, tmp_path):
    """Also on the second machine, whose first process has another rank."""
    monkeypatch.setenv("RANK", "8")
    monkeypatch.setenv("LOCAL_RANK", "0")
    files, calls = [tmp_path / "a", tmp_path / "b"], []

    def download():
        calls.append(1)
        for file in files:
            file.touch()

    files[0].touch()
    wrn.downloads.download_once(files, download)
    wrn.downloads.download_once(files, download)
    assert calls == [1]


def test_the_other_processes_wait_for_the_file(wrn, second_process, monkeypatch, tmp_path):
    pauses = create_when_polled(wrn.downloads, monkeypatch, tmp_path / "a")
    wrn.downloads.download_once([tmp_path / "a"], refuse)
    assert len(pauses) == 3


def test_waiting_ends_with_an_error(wrn, second_process, tmp_path):
    with pytest.raises(wrn.command_line.UserError, match="a: not downloaded .* within 0 minutes"):
        wrn.downloads.download_once([tmp_path / "a"], refuse, timeout_s=0)


def test_released_weights_are_waited_for(imagenet, second_process, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(imagenet.download, "download_file", refuse)
    path = tmp_path / "checkpoints" / "dks_resnet18.pth"
    path.parent.mkdir()
    pauses = create_when_polled(imagenet.downloads, monkeypatch, path)
    assert imagenet.download.download_released_weights("resnet18") == path and len(pauses) == 3


def test_torchvisions_weights_are_waited_for(imagenet, second_process, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    path = tmp_path / "checkpoints" / "resnet18-f37072fd.pth"
    path.parent.mkdir()
    pauses, built = create_when_polled(imagenet.downloads, monkeypatch, path), []

    def get_model(arch, weights):
        assert path.exists()
        built.append(arch)
        return torch.nn.Linear(1, 1)

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    imagenet.pretrained.load_torchvision("resnet18", "IMAGENET1K_V1")
    assert len(pauses) == 3 and built == ["resnet18"]


def test_cifar_is_waited_for(wrn, second_process, cifar100, monkeypatch, tmp_path):
    """The files appear one by one; the last one ends the waiting."""
    cls = wrn.data.CIFAR["CIFAR100"]
    new, pauses = tmp_path / "new" / cls.base_folder, []
    new.mkdir(parents=True)

    def sleep(seconds):
        name = ("meta", "test", "train")[len(pauses)]
        (tmp_path / "root" / cls.base_folder / name).rename(new / name)
        pauses.append(seconds)

    monkeypatch.setattr(wrn.downloads.time, "sleep", sleep)
    monkeypatch.setattr(wrn.cifar, "download_cifar", refuse)
    data = wrn.data.load_dataset("CIFAR100", tmp_path / "new", 32, 1)
    assert len(pauses) == 3 and len(data.train.labels) == 12


def test_an_archive_that_is_there_is_unpacked(wrn, monkeypatch, cifar100, tmp_path):
    """Each file appears when it is complete, and no temporary one is left."""
    cls = wrn.data.CIFAR["CIFAR100"]
    archive = tmp_path / "new" / cls.filename
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "root" / cls.base_folder, cls.base_folder)
    monkeypatch.setattr(cls, "url", "http://127.0.0.1:9/x")
    monkeypatch.setattr(cls, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    wrn.data.load_dataset("CIFAR100", archive.parent, 32, 1)
    assert {path.name for path in archive.parent.iterdir()} == {cls.filename, cls.base_folder}
