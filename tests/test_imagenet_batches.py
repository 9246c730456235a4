"""Batches of imagenet/: order, processes, mixing, workers; and the cache of decoded images."""

import os
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from halves import write_data
from PIL import Image
from small_imagenet import full_disk, refusal
from synthetic import write_image
from torch.utils.data import Dataset

CPU, COUNT = torch.device("cpu"), 13


class Numbers(Dataset):
    """Images of 46x46 pixels, of their own number; the labels are the numbers modulo 5."""

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        return torch.full((3, 46, 46), index, dtype=torch.uint8), index % 5


def configured(imagenet, *words):
    words = ["DATA", "-b", "4", "--image-size", "40", "-j", "0", "--device", "cpu", *words]
    return imagenet.flags.with_recipe(imagenet.flags.parse_training([str(word) for word in words]))


def pixels(batch):
    """Return the values of the first channel before they were normalized."""
    return (batch.images[:, 0] * 0.229 + 0.485) * 255


@pytest.fixture
def batches(imagenet, monkeypatch):
    """Return the batches of an epoch of `Numbers`, for one of several processes."""

    def batches(*flags, epoch=0, first_step=0, rank=0, processes=1):
        monkeypatch.setattr(dist, "is_initialized", lambda: processes > 1)
        monkeypatch.setattr(dist, "get_rank", lambda: rank)
        monkeypatch.setattr(dist, "get_world_size", lambda: processes)
        config, compute = configured(imagenet, *flags), imagenet.distributed.Compute(CPU)
        crop = imagenet.augmentation.RandomCrop(40, COUNT, config.seed)
        sets = imagenet.data.ImageSets(list("abcde"), Numbers(), Numbers(), crop, "")
        loaded = imagenet.train.make_training_batches(config, sets, compute)
        found = list(loaded.epoch(epoch, first_step))
        assert len(found) == loaded.steps - first_step
        return found

    return batches


def numbers(found):
    return [pixels(batch)[:, 0, 0].round().int().tolist() for batch in found]


def test_each_epoch_has_every_image_once_and_can_start_at_any_step(batches):
    epochs = [numbers(batches(epoch=epoch)) for epoch in range(2)]
    for epoch, found in enumerate(epochs):
        assert sorted(sum(found, [])) == list(range(COUNT))
        assert [len(batch) for batch in found] == [4, 4, 4, 1]
        assert numbers(batches(epoch=epoch, first_step=2)) == found[2:]
    orders = [sum(each, []) for each in (*epochs, numbers(batches("--seed", 2)))]
    orders.append(sorted(orders[0]))
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("mix", [(), ("--mixup", 0.5, "--cutmix", 1)])
def test_processes_share_the_batches_of_one_process(batches, processes, mix):
    """Of 6, 6 and 1 images. Two processes or more can't share the last one, which is left out."""
    whole = batches("-b", 6, *mix)
    parts = [batches("-b", 6, *mix, rank=r, processes=processes) for r in range(processes)]
    assert len(whole) == 3 and {len(part) for part in parts} == {2}
    for step, expected in enumerate(whole[:2]):
        own = [part[step] for part in parts]
        assert torch.equal(torch.cat([each.images for each in own]), expected.images)
        assert torch.equal(torch.cat([each.labels for each in own]), expected.labels)
        assert {each.total for each in own} == {6} and all(len(each.labels) for each in own)


def test_images_are_mixed_with_those_before_them(batches):
    plain, mixed = batches(), batches("--mixup", 1)
    for own, (images, labels, _) in zip(numbers(plain)[:3], mixed, strict=False):
        own = torch.tensor(own)
        before = own.roll(1)
        values = pixels(mixed[0]._replace(images=images))[:, 0, 0]
        shares = (values - before) / (own - before)  # of the image itself
        torch.testing.assert_close(shares, shares[:1].expand(4), rtol=0, atol=1e-3)
        hot = [torch.eye(5)[each % 5] for each in (own, before)]
        expected = shares[0] * hot[0] + (1 - shares[0]) * hot[1]
        torch.testing.assert_close(labels, expected, rtol=0, atol=1e-3)


def test_each_test_image_goes_to_exactly_one_process(imagenet, batches):
    compute, seen = imagenet.distributed.Compute(CPU), []
    for rank in range(3):
        batches("-b", 6, rank=rank, processes=3)  # this process is one of three from now on
        seen += imagenet.batches.TestBatches(Numbers(), 6, 0, compute)
    assert sum(numbers(seen), []) == list(range(COUNT)) and len(seen[0].labels) == 2
    message = refusal(imagenet, imagenet.batches.TestBatches, [0, 1], 6, 0, compute)
    assert message.startswith("2 images for 3 processes")


@pytest.fixture
def data(tmp_path):
    """Images of several formats and sizes."""
    root = write_data(tmp_path / "data")
    write_image(root / "train" / "cat" / "a.jpg", size=(50, 70))
    Image.new("CMYK", (30, 20), (9, 80, 70, 6)).save(root / "train" / "dog" / "cmyk.jpg")
    return root


@pytest.fixture
def images(imagenet, monkeypatch):
    """Return all batches, for training and for tests, of a command line of train.py."""
    for name in ("common", "common.command_line"):  # of the errors that workers send
        monkeypatch.setitem(sys.modules, name, imagenet.train and imagenet.imported[name])

    def images(data, *flags, cache=None):
        config = configured(imagenet, *flags, *(("--cache", cache) if cache else ()))
        config = replace(config, data=data)
        sets = imagenet.train.load_sets(config)
        compute = imagenet.distributed.Compute(CPU)
        train = imagenet.train.make_training_batches(config, sets, compute)
        found = [*train.epoch(0), *train.epoch(1, first_step=2)]
        found += imagenet.batches.TestBatches(sets.test, 2, config.workers, compute)
        return [part for batch in found for part in (batch.images, batch.labels)]

    return images


def same(one, other):
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


@pytest.mark.parametrize("flags", [(), ("--augmentation", "resized-crop"), ("--mixup", "1")])
def test_batches_do_not_depend_on_the_workers_and_the_cache(images, data, tmp_path, flags):
    expected = images(data, *flags)
    assert same(images(data, *flags, "-j", "2"), expected)
    if "resized-crop" not in flags:
        for workers in "20":
            cache = tmp_path / f"cache-{workers}"
            for _ in range(2):
                assert same(images(data, *flags, "-j", workers, cache=cache), expected)
            (path,) = cache.glob("train-*")
            assert np.load(path, mmap_mode="r").shape == (15, 46, 46, 3)


def test_a_cache_is_made_once_and_bound_to_its_images(imagenet, images, data, tmp_path):
    cache, image = tmp_path / "cache", data / "train" / "cat" / "cat_0.png"
    size = ("--image-size", "48")
    expected, content = images(data, cache=cache), image.read_bytes()
    assert same(images(data, *size, cache=cache), images(data, *size))  # beside the others
    image.write_bytes(b"not read again")
    assert same(images(data, cache=cache), expected)
    image.rename(data / "train" / "cat" / "another name.png")
    assert "another name.png: not an image" in refusal(imagenet, images, data, cache=cache)
    (data / "train" / "cat" / "another name.png").rename(image)
    for workers in "01":
        message = refusal(imagenet, images, data, "-j", workers, cache=tmp_path / "incomplete")
        assert message.startswith(f"{image}: not an image")
    image.write_bytes(content)
    assert same(images(data, cache=tmp_path / "incomplete"), expected)
    for path in cache.iterdir():
        path.unlink()
    assert same(images(data, cache=cache), expected)


def test_a_cache_without_room_is_refused(imagenet, images, data, tmp_path):
    (tmp_path / "file").touch()
    message = refusal(imagenet, images, data, cache=tmp_path / "file" / "cache")
    assert "file/cache: " in message and "Not a directory" in message
    cache = tmp_path / "cache"
    with full_disk():
        message = refusal(imagenet, images, data, cache=cache)
    assert message.startswith(f"--cache {cache}: ") and "too large" in message
    assert not list(cache.iterdir())


def test_two_runs_that_make_the_same_cache_do_not_disturb_each_other(
    imagenet, images, data, tmp_path, monkeypatch
):
    expected, children = images(data), []
    get, cache = imagenet.data.ImageFiles.__getitem__, tmp_path / "cache"

    def start_another(files, index):
        """Before image 9, fork another run, which makes the whole file."""
        if index == 9 and not children:
            children.append(os.fork())
            if not children[0]:
                os._exit(0 if same(images(data, cache=cache), expected) else 1)
            time.sleep(0.5)
        return get(files, index)

    monkeypatch.setattr(imagenet.data.ImageFiles, "__getitem__", start_another)
    assert same(images(data, cache=cache), expected)
    assert os.waitpid(children[0], 0)[1] == 0


def test_a_tmpdir_too_long_for_the_sockets_of_workers_is_refused(imagenet, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/" + 70 * "x")
    make, cpu = imagenet.batches.make_loader, torch.device("cpu")
    assert "xxx: too long for workers; set a shorter one" in refusal(imagenet, make, [], 1, cpu)
    assert len(make([], 0, cpu)) == 0
