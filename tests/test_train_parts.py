"""The parts of ImageNet training: learning rate, average of weights, order, augmentation, step."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from training import TinyNetwork, write_data

CPU = torch.device("cpu")


def schedule(imagenet, **changes):
    values = {"kind": "step", "lr": 0.4, "steps_per_epoch": 10, "epochs": 100}
    values |= {"warmup_epochs": 0.0, "milestones": (30, 60, 90), "factor": 0.1}
    return imagenet.schedule.Schedule(**values | changes)


def test_the_paper_s_learning_rate(imagenet):
    rates = [schedule(imagenet).rate(step) for step in (0, 299, 300, 599, 600, 899, 900, 999)]
    assert rates == pytest.approx([0.4, 0.4, 0.04, 0.04, 0.004, 0.004, 0.0004, 0.0004])


def test_warmup_and_cosine(imagenet):
    warm = schedule(imagenet, kind="cosine", warmup_epochs=2.0, epochs=12)
    assert [warm.rate(step) for step in (0, 9, 19)] == pytest.approx([0.02, 0.2, 0.4])
    assert warm.rate(20) == 0.4 and warm.rate(70) == pytest.approx(0.2)
    half_cosine = [0.2 * (1 + math.cos(math.pi * i / 100)) for i in range(100)]
    assert [warm.rate(20 + i) for i in range(100)] == pytest.approx(half_cosine)
    assert schedule(imagenet, warmup_epochs=40.0).rate(400) == pytest.approx(0.04)


def test_the_average_follows_the_weights(imagenet):
    network = TinyNetwork("", num_classes=3)
    average = imagenet.ema.ModelEma(network, decay=0.75)
    names = ("fc.weight", "features.1.running_mean")
    expected = {name: network.state_dict()[name].clone() for name in names}
    for count in range(1, 4):
        with torch.no_grad():
            network.fc.weight.add_(1.0)
            network(torch.randn(4, 3, 16, 16))  # moves the running statistics
        average.update()
        for name in names:
            expected[name] = 0.75 * expected[name] + 0.25 * network.state_dict()[name]
            torch.testing.assert_close(average.model.state_dict()[name], expected[name])
        assert average.model.features[1].num_batches_tracked == count
    assert not any(p.requires_grad for p in average.model.parameters())


def test_each_epoch_has_every_image_once_from_any_step_on(imagenet):
    sampler = imagenet.loader.ResumableBatchSampler(10, batch_size=4, seed=3)
    epochs = []
    for epoch in range(2):
        sampler.start_at(epoch, 0)
        epochs.append(list(sampler))
        assert sorted(index for batch in epochs[-1] for _, index in batch) == list(range(10))
        assert [len(batch) for batch in epochs[-1]] == [4, 4, 2]
        sampler.start_at(epoch, 2)
        assert list(sampler) == epochs[-1][2:]
    indices = [[index for batch in epoch for _, index in batch] for epoch in epochs]
    assert indices[0] != indices[1] and indices[0] != sorted(indices[0])
    other = imagenet.loader.ResumableBatchSampler(10, batch_size=4, seed=4)
    assert [[index for _, index in batch] for batch in other] != [
        [index for _, index in batch] for batch in epochs[0]
    ]


def test_processes_share_out_the_batches_of_one(imagenet, monkeypatch):
    def batches(rank, world):
        monkeypatch.setattr(imagenet.distributed, "rank", lambda: rank)
        monkeypatch.setattr(imagenet.distributed, "world_size", lambda: world)
        sampler = imagenet.loader.ResumableBatchSampler(13, batch_size=6, seed=0)
        return list(sampler), [sampler.batch_fraction(step) for step in range(sampler.steps)]

    whole, _ = batches(0, 1)
    parts = [batches(rank, 3) for rank in range(3)]
    for step, batch in enumerate(whole):
        shares = [share[step] for _, share in parts]
        assert sum(shares) == pytest.approx(1)
        counted = [taken[step] for (taken, _), share in zip(parts, shares, strict=True) if share]
        assert [key for taken in counted for key in taken] == batch
        assert all(len(taken[step]) >= 1 for taken, _ in parts)  # with no share, one for the form


def training_data(imagenet, files, workers, first=0, epoch=1):
    sampler = imagenet.loader.ResumableBatchSampler(len(files), batch_size=4, seed=0)
    with imagenet.loader.WorkerSignalGuard() as readers:
        data = imagenet.loader.TrainingLoader(files, sampler, 0, workers, 2, CPU, readers)
        return list(data.epoch(epoch, first))


@pytest.mark.parametrize("augmentation", ["crop", "resized-crop"])
def test_augmentation_depends_on_seed_epoch_and_image_alone(imagenet, tmp_path, augmentation):
    data = write_data(tmp_path)
    files = imagenet.data.find_image_sets(data, None, 36, augmentation).train
    torch.manual_seed(1)
    whole = training_data(imagenet, files, 0)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    rest = training_data(imagenet, files, 2, first=2)
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(whole[2:], rest, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
    augmented = imagenet.data.AugmentedDataset(files, seed=0)
    again = imagenet.data.AugmentedDataset(files, seed=1)
    pixels = {tuple(augmented[epoch, 5][0].flatten().tolist()) for epoch in range(4)}
    assert len(pixels) == 4 and not torch.equal(augmented[0, 5][0], again[0, 5][0])


def test_the_paper_s_augmentation(imagenet):
    """Resized to a square, cropped anywhere, mirrored half of the time, nothing else."""
    ramp = np.tile(np.arange(0, 256, 2, dtype=np.uint8), (64, 1))  # 128 wide, 64 high
    image = Image.fromarray(np.stack([ramp, ramp, ramp], -1))
    square = np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC)).astype(int)
    transform = imagenet.presets.training_transform("crop", 56)
    torch.manual_seed(0)
    lefts, mirrored = set(), 0
    for _ in range(200):
        crop = transform(image)
        assert crop.shape == (3, 56, 56) and crop.dtype == torch.uint8
        row = crop[0, 0].long().numpy()
        flipped = row[0] > row[-1]
        mirrored += flipped
        row = row[::-1] if flipped else row
        left = next(i for i in range(9) if (square[0, i : i + 56, 0] == row).all())
        lefts.add(left)
    assert lefts == set(range(9)) and 70 < mirrored < 130


def test_training_images_are_normalised_as_evaluation_s_are(imagenet, tmp_path):
    path = tmp_path / "gray.png"
    Image.new("RGB", (50, 50), (200, 100, 50)).save(path)
    make = imagenet.data.ImageFiles
    training = make([path], [0], imagenet.presets.training_transform("crop", 40))
    (batch,) = training_data(imagenet, training, 0)
    expected, _ = make([path], [0], imagenet.presets.evaluation_transform(40))[0]
    torch.testing.assert_close(batch.images[0], expected)


def test_many_paths_are_kept_in_one_block(imagenet, tmp_path):
    names = [tmp_path / "a b" / "ü.png", tmp_path / "c.png"]
    paths = imagenet.data.PathArray(names)
    assert len(paths) == 2 and list(paths) == names


def trainer(imagenet, dtype=torch.float32, parts=1):
    torch.manual_seed(0)
    network = TinyNetwork("", num_classes=3)
    loss = imagenet.synergy.SynergyLoss()
    sgd = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    ema = imagenet.ema.ModelEma(network, 0.9)
    return imagenet.engine.Trainer(network, loss, sgd, ema, dtype, parts)


def batch_of(imagenet, count):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, 40, 40, generator=generator)
    return imagenet.loader.Batch(images, torch.arange(count) % 3, 1.0)


@pytest.mark.parametrize("parts", [2, 3, 9])
def test_accumulated_gradients_are_those_of_the_whole_batch(imagenet, parts):
    whole, parted = trainer(imagenet), trainer(imagenet, parts=parts)
    losses = []
    for each in (whole, parted):
        each.parallel.eval()
        losses.append(each._accumulate_gradients(batch_of(imagenet, 7)))
    torch.testing.assert_close(*losses)
    for one, other in zip(whole.model.parameters(), parted.model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-6)
    for name, value in whole.sums.totals().items():
        torch.testing.assert_close(parted.sums.totals()[name], value, rtol=1e-5, atol=1e-6)


class Readings(TorchDispatchMode):
    """Counts how often a value is read from a tensor, which would wait for a GPU."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.count += 1
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_reads_nothing_from_the_device(imagenet, dtype):
    each = trainer(imagenet, dtype, parts=2)
    batch = batch_of(imagenet, 6)
    each.train_step(batch, 0.1)
    with Readings() as readings:
        each.train_step(batch, 0.1)
        assert readings.count == 0
        assert each.first_bad_step() == 0
        assert readings.count == 1


def test_the_first_bad_step_is_remembered(imagenet):
    each = trainer(imagenet)
    good = batch_of(imagenet, 4)
    bad = good._replace(images=good.images * float("inf"))
    for batch in (good, bad, good, bad):
        each.train_step(batch, 0.1)
    assert each.first_bad_step() == 2


@pytest.mark.parametrize(("size", "nhwc"), [(64, False), (96, True)])
def test_small_images_are_trained_in_nchw_on_a_cpu(imagenet, size, nhwc):
    """Weights and activations alike, whatever the layout in which the images come."""
    seen = []

    class Network(torch.nn.Sequential):
        def forward(self, images):
            features = self[0](images)
            seen.append(features.is_contiguous(memory_format=torch.channels_last))
            return (features.mean((2, 3)),)

    layout = imagenet.engine.memory_format(size, CPU)
    network = Network(torch.nn.Conv2d(3, 4, 3)).to(memory_format=layout)
    sgd = torch.optim.SGD(network.parameters(), lr=0.1)
    trainer = imagenet.engine.Trainer(network, imagenet.synergy.SynergyLoss(), sgd)
    images = torch.randn(2, 3, size, size)
    for given in (images, images.contiguous(memory_format=torch.channels_last)):
        trainer.train_step(imagenet.loader.Batch(given, torch.tensor([0, 3]), 1.0), 0.1)
    assert seen == [nhwc, nhwc]


def test_sums_from_a_checkpoint_go_on_on_the_device(imagenet):
    """The checkpoint's are on the CPU; the meta device stands in for a GPU."""
    sums = imagenet.metrics.MetricSums(torch.device("meta"))
    sums.add(losses=torch.zeros(3))
    sums.add(losses=torch.zeros(3, device="meta"))
    with pytest.raises(NotImplementedError, match="no data"):  # that all of it is there, then
        sums.totals(all_processes=False)
