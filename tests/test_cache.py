"""train.py --cache: batches equal to the last bit, interrupted builds, refusals."""

import contextlib
import errno
import faulthandler
import json
import os
import resource
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from PIL import Image
from processes import free_ports
from synthetic import write_image
from training import (
    assert_same_run,
    command_line,
    error_of,
    log_records,
    run_train,
    write_data,
)

CPU = torch.device("cpu")


@pytest.fixture
def data(tmp_path):
    """Images of several formats."""
    data = write_data(tmp_path / "data")
    write_image(data / "train" / "cat" / "a.jpg", size=(50, 70))
    Image.new("CMYK", (30, 20), (9, 80, 70, 6)).save(data / "train" / "dog" / "cmyk.jpg")
    return data


@pytest.fixture
def train(imagenet):
    return lambda argv: run_train(imagenet, argv)


def image_sets(imagenet, data, skip_unreadable=False, size=36):
    return imagenet.data.find_image_sets(data, None, size, "crop", skip_unreadable)


def cached(imagenet, folder, data, workers=0, **options):
    sets = image_sets(imagenet, data, **options)
    return imagenet.cache_building.cached_sets(folder, data, sets, workers)


def training_batches(imagenet, files, epoch=1, first_step=0, mixing=None):
    sampler = imagenet.sampler.ResumableBatchSampler(len(files), 4, 0, mixing is not None)
    dataset = imagenet.data.AugmentedDataset(files, 0)
    loader = imagenet.loader.TrainingLoader(dataset, sampler, 0, 2, CPU, None, mixing)
    return list(loader.epoch(epoch, first_step))


def validation_batches(imagenet, files):
    loader = imagenet.loader.evaluation_loader(files, 2, 0, CPU, None)
    assert len(loader) == 3
    return list(imagenet.loader.device_batches(loader, CPU))


def assert_equal_batches(actual, expected):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_without_a_cache(imagenet, data, tmp_path, monkeypatch, workers):
    """In any epoch and from any step on, mixed or not; for flips in one part or in several."""
    plain, sets = image_sets(imagenet, data), cached(imagenet, tmp_path / "cache", data, workers)
    for epoch, first_step in ((0, 0), (1, 0), (1, 2)):
        expected = training_batches(imagenet, plain.train, epoch, first_step)
        assert_equal_batches(training_batches(imagenet, sets.train, epoch, first_step), expected)
    monkeypatch.setattr(imagenet.cached, "FLIPPED_BYTES", 1)
    mixing = imagenet.mixing.make_mixing(0.5, 1.0, 3, 0)
    expected = training_batches(imagenet, plain.train, mixing=mixing)
    assert_equal_batches(training_batches(imagenet, sets.train, mixing=mixing), expected)
    expected = validation_batches(imagenet, plain.validation)
    assert_equal_batches(validation_batches(imagenet, sets.validation), expected)
    assert torch.equal(sets.train[3][0], plain.train[3][0]) and sets.train[3][1] == 0


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_batches_of_each_process_are_those_without_a_cache(
    imagenet, data, tmp_path, monkeypatch, rank
):
    plain, sets = image_sets(imagenet, data), cached(imagenet, tmp_path / "cache", data)
    for module in (imagenet.distributed, imagenet.loader):
        monkeypatch.setattr(module, "world_size", lambda: 3)
    monkeypatch.setattr(imagenet.distributed, "rank", lambda: rank)
    expected = training_batches(imagenet, plain.train)
    assert_equal_batches(training_batches(imagenet, sets.train), expected)
    loaders = [
        imagenet.loader.evaluation_loader(files, 3, 0, CPU, None)
        for files in (sets.validation, plain.validation)
    ]
    actual, expected = (list(imagenet.loader.device_batches(each, CPU)) for each in loaders)
    assert_equal_batches(actual, expected)


def test_images_that_are_not_in_memory_are_asked_for_together(
    imagenet, data, tmp_path, monkeypatch
):
    """From the batch on that follows one with many reads of the disk, until the epoch ends."""
    expected = training_batches(imagenet, image_sets(imagenet, data).train)
    sets = cached(imagenet, tmp_path / "cache", data)
    reads, asked = iter([0, 0, 10, 14, 14, 14, 14, 14] + [14] * 8), []
    monkeypatch.setattr(imagenet.cached, "disk_reads", lambda: next(reads))
    monkeypatch.setattr(
        os, "posix_fadvise", lambda file, start, length, advice: asked.append((start, length))
    )
    assert_equal_batches(training_batches(imagenet, sets.train), expected)
    sampler = imagenet.sampler.ResumableBatchSampler(15, 4, 0)
    sampler.start_at(1, 2)
    size = 41 * 41 * 3
    assert asked == [(size * index, size) for batch in sampler for _, index in batch]


def test_each_epoch_starts_without_asking(imagenet, tmp_path, monkeypatch):
    """Because the file may be in memory by then, where asking only takes time."""
    (tmp_path / "images.bin").touch()
    asked, reads = [], iter([0, 9, 9, 9, 9, 9])
    monkeypatch.setattr(imagenet.cached, "disk_reads", lambda: next(reads))
    monkeypatch.setattr(os, "posix_fadvise", lambda file, start, *rest: asked.append(start))
    advice = imagenet.cached.ReadAdvice(tmp_path / "images.bin", 10)
    for key in ((0, 1), (0, 2), (1, 3)):
        with advice.reading([key]):
            pass
    assert asked == [20]


def test_a_run_may_change_to_the_cache_and_back(train, data, tmp_path, capsys):
    """It ends with the weights of a run without one, though an image cannot be read."""
    (data / "train" / "eel" / "eel_2.png").write_bytes(b"")
    flags = ("--skip-unreadable", "--mixup", "0.2", "--ema", "0.9")
    assert train(command_line(data, tmp_path / "plain", *flags, "--epochs", "3")) == 0
    expected = capsys.readouterr()
    assert expected.err.count("eel_2.png: not an image") == 3
    cache = ("--cache", str(tmp_path / "cache"))
    for epochs, more in (("1", cache), ("2", ()), ("3", cache)):
        more = (*flags, *more, "--epochs", epochs, "--resume", "auto")
        assert train(command_line(data, tmp_path / "run", *more)) == 0
    assert_same_run(tmp_path / "run", tmp_path / "plain")
    assert [record["train"]["unreadable"] for record in log_records(tmp_path / "run")] == [1, 1, 1]
    actual = capsys.readouterr()
    assert actual.out.count(f"--cache {cache[1]}: 20 images take 0.1 MB, and ") == 1
    assert actual.out.count(f"the images are read from --cache {cache[1]}") == 2
    assert actual.err.count("eel_2.png: not an image") == 2  # when it is made, and without it


def test_without_skip_unreadable_an_image_ends_the_run(train, data, tmp_path, capsys):
    """When the cache is made, and when one is used that was made with the flag."""
    (data / "train" / "eel" / "eel_2.png").write_bytes(b"")
    argv = command_line(data, tmp_path / "run", "--cache", str(tmp_path / "cache"))
    for workers in "10":
        error = error_of(train, capsys, [*argv, "-j", workers])
        assert error.startswith(f"error: {data}/train/eel/eel_2.png: not an image that can be read")
    assert train([*argv, "--skip-unreadable", "--epochs", "1"]) == 0
    error = error_of(train, capsys, argv)
    assert "eel_2.png: could not be read when" in error and "--skip-unreadable" in error
    assert error.endswith(f"and delete {tmp_path / 'cache' / 'images.bin'}\n")


def test_a_file_that_vanishes_while_the_cache_is_made_is_unreadable(imagenet, data, tmp_path):
    """Only its image in the cache is marked; its label still says what it is."""
    sets = image_sets(imagenet, data, skip_unreadable=True)
    sets.train.paths[1].unlink()
    read = imagenet.cache_building.cached_sets(tmp_path / "cache", data, sets, 0)
    assert [read.train[index][1] for index in range(3)] == [0, imagenet.data.UNREADABLE, 0]
    assert sets.train.labels[1] == 0 == read.train.labels[1]


def test_the_workers_of_all_processes_of_a_machine_make_the_cache(
    imagenet, data, tmp_path, monkeypatch
):
    building, counts = imagenet.cache_building, []
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(building, "make_or_check", lambda *arguments: counts.append(arguments[-1]))
    monkeypatch.setattr(building, "read_from_cache", lambda folder, sets: sets)
    building.cached_sets(tmp_path / "cache", data, image_sets(imagenet, data), 3)
    assert counts == [12]


def test_resized_crops_are_refused(train, data, tmp_path, capsys):
    for flags in (("--augmentation", "resized-crop"), ("-a", "resnet152")):
        argv = command_line(data, tmp_path / "run", "--cache", str(tmp_path / "cache"), *flags)
        assert "at random before it resizes it" in error_of(train, capsys, argv)
    assert not (tmp_path / "cache").exists()


class Killed:
    """Kills this process with SIGKILL when the chunk that starts at `start` is asked for."""

    def __init__(self, imagenet, patch, start):
        original = imagenet.cache_building.Chunks.__getitem__

        def write(chunks, index):
            if index == start:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(chunks, index)

        patch.setattr(imagenet.cache_building.Chunks, "__getitem__", write)


def written_chunks(imagenet, patch):
    """Return a list that receives the start of each chunk that is written."""
    written, original = [], imagenet.cache_building.Chunks.__getitem__

    def write(chunks, index):
        written.append(index)
        return original(chunks, index)

    patch.setattr(imagenet.cache_building.Chunks, "__getitem__", write)
    return written


def partial_files(folder):
    return list(folder.glob("images.bin.*"))


def test_a_killed_build_is_continued(imagenet, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(imagenet.cache_building, "CHUNK", 4)
    monkeypatch.setattr(imagenet.cache_building, "SAVE_S", 0)
    child = os.fork()
    if not child:
        try:
            Killed(imagenet, monkeypatch, start=12)
            cached(imagenet, tmp_path / "cache", data)
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    names = {path.name for path in (tmp_path / "cache").iterdir()}
    assert len(partial_files(tmp_path / "cache")) == 1 and "images.bin" not in names
    written = written_chunks(imagenet, monkeypatch)
    sets = cached(imagenet, tmp_path / "cache", data)
    assert written == [12, 16] and "continued after 12 images" in capsys.readouterr().out
    expected = training_batches(imagenet, image_sets(imagenet, data).train)
    assert_equal_batches(training_batches(imagenet, sets.train), expected)
    assert not partial_files(tmp_path / "cache")


def test_a_stopped_build_keeps_what_is_written(imagenet, data, tmp_path, monkeypatch):
    """Also less than `SAVE_S` seconds after the last record of the progress."""
    monkeypatch.setattr(imagenet.cache_building, "CHUNK", 4)

    def stop():
        if len(written) == 3:
            raise imagenet.signals.Interrupted(signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(imagenet.signals.Interrupted):
        written = written_chunks(imagenet, patch)
        patch.setattr(imagenet.cache_building, "check_signals", stop)
        cached(imagenet, tmp_path / "cache", data)
    written = written_chunks(imagenet, monkeypatch)
    cached(imagenet, tmp_path / "cache", data)
    assert written == [12, 16]


def test_a_signal_stops_a_build_also_if_the_progress_cannot_be_saved(
    imagenet, data, tmp_path, monkeypatch
):
    def stop():
        raise imagenet.signals.Interrupted(signal.SIGTERM)

    def fail(progress):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(imagenet.cache_building, "check_signals", stop)
    monkeypatch.setattr(imagenet.cache_building.BuildProgress, "_save", fail)
    with pytest.raises(imagenet.signals.Interrupted):
        cached(imagenet, tmp_path / "cache", data)


def test_a_build_with_other_images_begins_again(imagenet, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(imagenet.cache_building, "CHUNK", 4)
    with monkeypatch.context() as patch, pytest.raises(KeyError):
        patch.setattr(imagenet.cache_building, "check_signals", lambda: {}["stop"])
        cached(imagenet, tmp_path / "cache", data)
    write_image(data / "train" / "cat" / "cat_0.png", seed=99)
    written = written_chunks(imagenet, monkeypatch)
    sets = cached(imagenet, tmp_path / "cache", data)
    assert written == [0, 4, 8, 12, 16] and "begun again" in capsys.readouterr().out
    assert torch.equal(sets.train[1][0], image_sets(imagenet, data).train[1][0])


def test_a_worker_of_a_killed_build_does_not_write_into_another_build(
    imagenet, data, tmp_path, monkeypatch, capsys
):
    """Even if it writes while the other one does. What the killed one has written is removed."""
    building, cache, leftover = imagenet.cache_building, tmp_path / "cache", []
    chunks = building.Chunks
    with monkeypatch.context() as patch, pytest.raises(KeyError):
        patch.setattr(building, "check_signals", lambda: {}["stop"])
        patch.setattr(
            building, "Chunks", lambda *args: leftover.append(chunks(*args)) or leftover[0]
        )
        cached(imagenet, cache, data)
    (cache / "images.bin.partial").write_bytes(b"of an older version")

    def write_late():
        assert len(partial_files(cache)) == 1
        with contextlib.suppress(imagenet.command_line.UserError):
            leftover[0][0]

    with monkeypatch.context() as patch:
        patch.setattr(building, "check_signals", write_late)
        sets = cached(imagenet, cache, data, size=40)
    assert capsys.readouterr().out.count("begun again") == 1
    plain = image_sets(imagenet, data, size=40)
    assert_equal_batches(
        training_batches(imagenet, sets.train), training_batches(imagenet, plain.train)
    )


def test_files_are_named_within_the_data(imagenet, data, tmp_path, monkeypatch):
    """A cache is of the same files whichever way the folder is given."""
    cached(imagenet, tmp_path / "cache", data)
    monkeypatch.chdir(data)
    for name in (".", "train/..", "../data"):
        cached(imagenet, tmp_path / "cache", Path(name))
    text = (tmp_path / "cache" / "files.txt").read_text()
    assert [line.split(" ", 2)[2] for line in text.splitlines()][-1] == "'val/eel/eel_0.png'"


def disk_with(free):
    return lambda path: SimpleNamespace(f_bavail=free // 512, f_frsize=512)


def test_a_disk_that_is_too_small_is_refused_at_once(train, imagenet, data, tmp_path, monkeypatch):
    """In one line with the size of the cache; nothing is left behind."""
    monkeypatch.setattr(imagenet.cache.os, "statvfs", disk_with(45_000))
    folder = tmp_path / "new" / "cache"
    with pytest.raises(imagenet.command_line.UserError) as error:
        cached(imagenet, folder, data)
    text = str(error.value)
    assert "20 images take 0.1 MB, but only 0.0 MB are free there" in text and "\n" not in text
    assert not folder.parent.exists()
    monkeypatch.setattr(imagenet.cache.os, "statvfs", disk_with(150_000))
    cached(imagenet, folder, data)


def test_an_interrupted_build_may_fill_the_disk(imagenet, tmp_path, monkeypatch):
    """What it has written on the disk counts as free, and its lock may be removed."""
    state = imagenet.cache.CacheState("", 15, 5, 36, 41)
    state.write(tmp_path)
    monkeypatch.setattr(imagenet.cache.os, "statvfs", disk_with(0))
    with open(tmp_path / state.partial_name(), "wb") as file:
        file.truncate(state.offset(state.count))  # takes no space yet
        with pytest.raises(imagenet.command_line.UserError, match="only 0.0 MB are free"):
            imagenet.cache_checks.check_folder(tmp_path, state)
        file.write(os.urandom(state.offset(state.count)))
        file.flush()
        os.fsync(file.fileno())
    imagenet.cache_checks.check_folder(tmp_path, state)


def test_a_cache_of_imagenet_takes_what_the_documentation_says(imagenet):
    state = imagenet.cache.CacheState("", 1_281_167, 50_000, 224, 256)
    size = f"{state.offset(state.count) / 1e9:.0f} GB"
    assert f"{size} for ImageNet" in " ".join((ROOT / "docs" / "imagenet.md").read_text().split())


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_disk_that_becomes_full_ends_the_build_in_one_line(
    train, imagenet, data, tmp_path, monkeypatch, capsys, workers
):
    """The same command continues when there is space again."""
    argv = command_line(data, tmp_path / "run", "--cache", str(tmp_path / "cache"), "-j", workers)
    monkeypatch.setattr(imagenet.cache_building, "CHUNK", 4)

    with monkeypatch.context() as patch:
        patch.setattr(imagenet.cache_building.Chunks, "_write", full_disk)
        error = error_of(train, capsys, argv)
    assert f"--cache {tmp_path / 'cache'}: can't be written (No space left on device)" in error
    assert "the same command continues" in error and not (tmp_path / "run").exists()
    assert train(argv) == 0


def full_disk(chunks, start, content):
    raise OSError(errno.ENOSPC, "No space left on device")


def touch(data, cache):
    os.utime(data / "train" / "cat" / "cat_3.png", (1, 1))


def resize(data, cache):
    path = data / "val" / "dog" / "dog_1.png"
    status = path.stat()
    path.write_bytes(path.read_bytes() + b"more")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def remove(data, cache):
    (data / "train" / "dog" / "dog_0.png").unlink()


def add(data, cache):
    write_image(data / "train" / "dog" / "dog_9.png")


def truncate(data, cache):
    os.truncate(cache / "images.bin", 1000)


def edit(data, cache):
    path = cache / "cache.json"
    path.write_text(path.read_text().replace('"unreadable": []', '"unreadable": [1]'))


def forget(data, cache):
    (cache / "cache.json").unlink()


def touch_without_list(data, cache):
    touch(data, cache)
    (cache / "files.txt").unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (touch, "out of date: 'train/cat/cat_3.png' has changed since it was made; "),
        (resize, "out of date: 'val/dog/dog_1.png' has changed since it was made"),
        (remove, "dog_0.png' where there is 'train/dog/dog_1.png' now (20 images, now 19); "),
        (add, "out of date: it has 'train/eel/eel_0.png' where there is 'train/dog/dog_9.png'"),
        (truncate, "damaged: images.bin has 1,000 bytes, not "),
        (edit, "cache.json is missing or damaged"),
        (forget, "cache.json is missing or damaged"),
        (touch_without_list, "out of date: made from other files, and files.txt is missing"),
    ],
)
def test_a_cache_that_does_not_fit_is_refused(train, data, tmp_path, capsys, change, message):
    cache = tmp_path / "cache"
    argv = command_line(data, tmp_path / "run", "--cache", str(cache), "--epochs", "1")
    assert train(argv) == 0
    change(data, cache)
    error = error_of(train, capsys, [*argv, "--resume", "auto"])
    assert message in error and f"or delete {cache / 'images.bin'}, which is then made" in error


def test_a_folder_with_other_files_is_refused(train, data, tmp_path, capsys):
    """Such as that of the images, which a later message could ask to delete."""
    before = sorted(os.listdir(data))
    for cache in (data, data / "train" / "cat"):
        argv = command_line(data, tmp_path / "run", "--cache", str(cache))
        assert f"--cache {cache}: has other files, such as " in error_of(train, capsys, argv)
    assert sorted(os.listdir(data)) == before


def test_what_ends_a_process_that_reads_a_truncated_file_is_printed(imagenet, data, tmp_path):
    sets = image_sets(imagenet, data)
    cached(imagenet, tmp_path / "cache", data)
    child = os.fork()
    if not child:
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            faulthandler.disable()  # which pytest has enabled
            with open(tmp_path / "stderr", "w") as sys.stderr:
                files = imagenet.cached.read_from_cache(tmp_path / "cache", sets).train
                os.truncate(files.source, 0)
                next(iter(files.batches([range(4)], 1, False)))
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] & 127 == signal.SIGBUS
    text = (tmp_path / "stderr").read_text()
    assert "Bus error" in text and "cached.py" in text


@pytest.mark.parametrize(("name", "value"), [("format", 0), ("resize", "nearest")])
def test_a_cache_of_another_version_is_refused(imagenet, data, tmp_path, name, value):
    cached(imagenet, tmp_path / "cache", data)
    state = imagenet.cache.read_state(tmp_path / "cache")
    imagenet.cache_building.replace(state, **{name: value}).write(tmp_path / "cache")
    with pytest.raises(imagenet.command_line.UserError, match="made by another version"):
        cached(imagenet, tmp_path / "cache", data)


def test_a_cache_of_another_size_is_refused(imagenet, data, tmp_path):
    cached(imagenet, tmp_path / "cache", data)
    with pytest.raises(imagenet.command_line.UserError, match="--image-size 36, not 40"):
        cached(imagenet, tmp_path / "cache", data, size=40)


def test_a_complete_cache_can_be_read_only(imagenet, data, tmp_path, monkeypatch):
    """It is neither locked nor written, and needs no space."""
    cached(imagenet, tmp_path / "cache", data)
    monkeypatch.setattr(imagenet.cache_building, "open_lock", None)
    monkeypatch.setattr(imagenet.cache.os, "statvfs", disk_with(0))
    cached(imagenet, tmp_path / "cache", data)


def test_a_second_run_waits_for_the_first_to_make_the_cache(
    imagenet, data, tmp_path, monkeypatch, capsys
):
    building, open_lock, pauses = imagenet.cache_building, imagenet.cache_building.open_lock, []

    def locked(folder, flag, name):
        if len(pauses) < 2:
            raise imagenet.owner_file.FolderLocked(f"{flag} {folder}: another run is writing there")
        return open_lock(folder, flag, name)

    def pause(seconds):
        pauses.append(seconds)
        if len(pauses) == 2:  # the first run finishes
            with monkeypatch.context() as patch:
                patch.setattr(building, "open_lock", open_lock)
                cached(imagenet, tmp_path / "cache", data)

    monkeypatch.setattr(building, "open_lock", locked)
    monkeypatch.setattr(building.time, "sleep", pause)
    written = written_chunks(imagenet, monkeypatch)
    cached(imagenet, tmp_path / "cache", data)
    assert written == [0] and len(pauses) == 2
    assert capsys.readouterr().out.count("waiting: --cache") == 1


def test_a_signal_ends_the_wait_for_another_run(imagenet, tmp_path, monkeypatch):
    building, pauses = imagenet.cache_building, iter(range(3))

    def locked(*arguments):
        raise imagenet.owner_file.FolderLocked("another run is writing there")

    def stop():
        raise imagenet.signals.Interrupted(signal.SIGTERM)

    monkeypatch.setattr(building, "open_lock", locked)
    monkeypatch.setattr(building, "check_signals", stop)
    monkeypatch.setattr(building.time, "sleep", lambda seconds: next(pauses))
    with pytest.raises(imagenet.signals.Interrupted), building.wait_for_lock(tmp_path):
        pass


def test_a_locked_folder_is_told_from_one_that_cannot_be_written(imagenet, tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(imagenet.command_line.UserError, match="--cache .*can't be written"),
        imagenet.cache_building.wait_for_lock(tmp_path / "file" / "cache"),
    ):
        pass


def run_pair(imagenet_runs, argv, local_ranks):
    """Run train.py in two processes with these numbers on their machines."""
    (port,) = free_ports(1)
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    pair = [
        imagenet_runs.start(argv, RANK=str(rank), LOCAL_RANK=str(local), **variables)
        for rank, local in enumerate(local_ranks)
    ]
    for process in pair:
        imagenet_runs.wait(process)


def test_processes_share_a_cache(imagenet_runs, data, tmp_path):
    """One process of each machine makes it, or waits for another machine that does."""
    run_pair(imagenet_runs, command_line(data, tmp_path / "plain"), (0, 1))
    for local_ranks in ((0, 1), (0, 0)):
        name = f"with {local_ranks}"
        argv = command_line(data, tmp_path / name, "--cache", str(tmp_path / f"cache {name}"))
        run_pair(imagenet_runs, argv, local_ranks)
        assert_same_run(tmp_path / name, tmp_path / "plain")


def test_other_processes_wait_longer_than_a_collective(imagenet, monkeypatch):
    """They neither work nor give up after half an hour, and look for signals."""
    distributed, calls = imagenet.distributed, []
    work = SimpleNamespace(is_completed=lambda: len(calls) > 2, wait=lambda: calls.append("over"))
    fake = SimpleNamespace(
        is_initialized=lambda: True,
        get_rank=lambda: 1,
        new_group=lambda backend, timeout: (backend, timeout.days),
        barrier=lambda group, async_op: calls.append(group) or work,
    )
    monkeypatch.setattr(distributed, "dist", fake)
    monkeypatch.setattr(distributed, "check_signals", lambda: calls.append("signals"))
    monkeypatch.setenv("LOCAL_RANK", "1")
    distributed.once_per_machine(lambda: calls.append("work"))
    assert calls == [("gloo", 365), "signals", "signals", "over"]
    monkeypatch.setenv("LOCAL_RANK", "0")
    distributed.once_per_machine(lambda: calls.append("work"))
    assert calls[4] == "work"


def test_the_state_is_plain_json(imagenet, data, tmp_path):
    cached(imagenet, tmp_path / "cache", data)
    values = json.loads((tmp_path / "cache" / "cache.json").read_text())
    assert (values["train"], values["validation"], values["written"]) == (15, 5, 20)
    size = (tmp_path / "cache" / "images.bin").stat().st_size
    assert size == 15 * 41 * 41 * 3 + 5 * 36 * 36 * 3
