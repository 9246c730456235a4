"""Training batches: shuffling, random crops and flips; the learning-rate schedule."""

import pytest
import torch

CPU = torch.device("cpu")


@pytest.fixture
def batches(wrn):
    """Return a factory of training batches of ten different 8x8 images."""

    def make(seed=1, flip=True, batch_size=4):
        images = torch.arange(10 * 64).view(10, 1, 8, 8).repeat(1, 3, 1, 1) % 251
        split = wrn.data.Split(images.to(torch.uint8), torch.arange(10))
        info = wrn.data.DatasetInfo([], [0.0] * 3, [1.0] * 3)
        return wrn.loader.AugmentedBatches(split, info, batch_size, CPU, seed=seed, flip=flip)

    return make


def epoch(batches, number):
    return [(b.images, b.labels) for b in batches.epoch(number)]


def test_each_image_is_used_once_and_the_last_batch_is_partial(batches):
    labels = [labels for _, labels in epoch(batches(), 0)]
    assert [len(each) for each in labels] == [4, 4, 2]
    assert torch.cat(labels).sort().values.tolist() == list(range(10))
    assert torch.cat(labels).tolist() != list(range(10))


def test_batches_depend_only_on_seed_and_epoch(batches):
    first, torch_state = epoch(batches(), 3), torch.get_rng_state()
    torch.rand(5)  # the global generator is not used
    second = epoch(batches(), 3)
    for (images, labels), (expected_images, expected_labels) in zip(first, second, strict=True):
        assert torch.equal(images, expected_images) and torch.equal(labels, expected_labels)
    torch.set_rng_state(torch_state)
    other_epoch, other_seed = epoch(batches(), 4), epoch(batches(seed=2), 3)
    assert not torch.equal(first[0][1], other_epoch[0][1])
    assert not torch.equal(first[0][1], other_seed[0][1])


def all_crops(loader, label):
    """Return all crops of an image padded by one reflected pixel, (9, 3, 8, 8)."""
    source = loader.images[label].float() / 255
    padded = torch.nn.functional.pad(source, (1, 1, 1, 1), mode="reflect")
    return padded.unfold(1, 8, 1).unfold(2, 8, 1).reshape(3, 9, 8, 8).transpose(0, 1)


def matching_crops(loader, image, label):
    """Return the (crop index, flipped) pairs that give an augmented image."""
    crops = all_crops(loader, label)
    return {
        (i, flip)
        for flip in (False, True)
        for i in range(9)
        if torch.allclose(image, crops[i].flip(2) if flip else crops[i])
    }


@pytest.mark.parametrize("flip", [True, False])
def test_all_crops_and_flips_of_the_padded_image_occur(batches, flip):
    loader, seen = batches(flip=flip), set()
    for number in range(6):
        for images, labels in epoch(loader, number):
            for image, label in zip(images, labels, strict=True):
                (crop,) = matching_crops(loader, image, label)
                seen.add(crop)
    assert {index for index, _ in seen} == set(range(9))
    assert {flipped for _, flipped in seen} == ({False, True} if flip else {False})


def test_normalization_equals_torchvision_s(wrn):
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    info = wrn.data.DatasetInfo([], [0.5, 0.4, 0.3], [0.2, 0.25, 0.3])
    plain = wrn.loader.Batches(wrn.data.Split(images, torch.arange(5)), info, 3, CPU)
    seen = torch.cat([batch.images for batch in plain.epoch()])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in info[1:])
    torch.testing.assert_close(seen, (images / 255 - mean) / std)
    assert torch.cat([batch.labels for batch in plain.epoch()]).tolist() == list(range(5))


@pytest.mark.parametrize("count", [2, 3, 4])
def test_processes_divide_each_batch(wrn, batches, monkeypatch, count):
    """Together their parts are the batch of a single process, with its augmentation."""
    whole = epoch(batches(batch_size=7), 2)
    monkeypatch.setattr(wrn.distributed, "world_size", lambda: count)
    parts = []
    for rank in range(count):
        monkeypatch.setattr(wrn.distributed, "rank", lambda rank=rank: rank)
        parts.append(list(batches(batch_size=7).epoch(2)))
    for step, (images, labels) in enumerate(whole):
        used = [part[step] for part in parts if part[step].batch_fraction]
        assert torch.equal(torch.cat([b.labels for b in used]), labels)
        assert torch.equal(torch.cat([b.images for b in used]), images)
        assert sum(part[step].batch_fraction for part in parts) == pytest.approx(1)
        assert all(len(part[step].labels) for part in parts)


@pytest.mark.parametrize(
    ("epochs", "milestones"),
    [
        (200, (60, 120, 160)),
        (100, (30, 60, 80)),
        (15, (5, 9, 12)),
        (5, (2, 3, 4)),
        (2, (2,)),
        (1, ()),
    ],
)
def test_milestones_scale_with_the_epochs(wrn, epochs, milestones):
    """Those that would not lie inside the run, and duplicates, are left out."""
    assert wrn.options.parse(["--epochs", str(epochs)]).epoch_step == milestones
    given = wrn.options.parse(["--epochs", str(epochs), "--epoch_step", "[7,3,7]"])
    assert given.epoch_step == (7, 3)


def test_milestones_can_be_numbers_of_finished_epochs(wrn):
    for flag in ("--lr-milestones", "--milestones", "--lr_milestones"):
        assert wrn.options.parse([flag, "59,119,159"]).epoch_step == (60, 120, 160)
    assert wrn.options.parse(["--milestones", ""]).epoch_step == ()


@pytest.mark.parametrize("words", ["--epoch_step [60,60]", "--lr-milestones 59,59"])
def test_a_milestone_given_twice_counts_once(wrn, words):
    """As in the released code, which asks whether the epoch is in the list."""
    milestones = wrn.options.parse(words.split()).epoch_step
    assert wrn.schedule.StepSchedule(0.1, milestones, 0.2).rate(60) == pytest.approx(0.02)


def test_schedule_describes_when_the_rate_falls(wrn):
    describe = wrn.schedule.StepSchedule(0.1, (5, 9, 12), 0.2).describe
    expected = "learning rate 0.1, decayed to 0.02 at epoch 5, 0.004 at 9, 0.0008 at 12"
    assert describe(15) == expected
    assert describe(5) == "learning rate 0.1, decayed to 0.02 at epoch 5"
    assert describe(4) == "learning rate 0.1, constant over 4 epochs"


def test_schedule_decays_and_resets_momentum_at_each_milestone(wrn):
    schedule = wrn.schedule.StepSchedule(0.1, (60, 120, 160), 0.2)
    rates = [schedule.rate(epoch - 1) for epoch in (1, 59, 60, 119, 120, 159, 160, 200)]
    expected = [0.1, 0.1, 0.02, 0.02, 0.004, 0.004, 0.0008, 0.0008]
    assert rates == pytest.approx(expected)
    assert [e + 1 for e in range(200) if schedule.resets_momentum(e)] == [60, 120, 160]
