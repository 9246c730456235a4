"""What imagenet/ promises of its numbers, against values computed here from the definitions."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from synthetic import write_folders
from training import TinyNetwork, load_checkpoint, log_records, run_train

CPU = torch.device("cpu")
STEPS = 3  # per epoch of 21 images in batches of 8
AUX_WEIGHT, SYNERGY_WEIGHT, WEIGHT_DECAY, MOMENTUM = 0.5, 2.0, 0.01, 0.8
SMOOTHING, DECAY = 0.2, 0.7
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """21 training and 14 validation images of seven classes, so that five can be wrong."""
    root = tmp_path_factory.mktemp("images")
    write_folders(root, dict.fromkeys("abcdefg", 3), "train")
    return write_folders(root, dict.fromkeys("abcdefg", 2), "val")


@pytest.fixture(scope="module")
def run(imagenet, data, tmp_path_factory):
    """A run with options that differ from the defaults; its initial weights and its batches."""
    folder, batches, step = tmp_path_factory.mktemp("run"), [], imagenet.engine.Trainer.train_step
    initial = {}

    def record(trainer, batch, lr):
        if not batches:
            initial.update({k: v.clone() for k, v in trainer.model.state_dict().items()})
        batches.append((batch.images.clone(), batch.labels.clone()))
        return step(trainer, batch, lr)

    flags = "--image-size 40 -b 8 --epochs 3 --lr 0.1 --lr-milestones 1,2 --lr-factor 0.5 -j 0"
    flags += f" --warmup-epochs 0.67 --momentum {MOMENTUM} --weight-decay {WEIGHT_DECAY}"
    flags += f" --aux-weight {AUX_WEIGHT} --synergy-weight {SYNERGY_WEIGHT} --ema {DECAY}"
    flags += f" --direction bottom-up --label-smoothing {SMOOTHING} --device cpu --save {folder}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imagenet.engine.Trainer, "train_step", record)
        assert run_train(imagenet, [str(data), *flags.split()]) == 0
    assert len(batches) == 3 * STEPS
    return folder, initial, batches


def loss_terms(logits, labels):
    """Return the cross-entropies, with smoothed labels, and the bottom-up synergy loss."""
    count = logits[0].shape[1]
    targets = (1 - SMOOTHING) * F.one_hot(labels, count) + SMOOTHING / count
    log_p = [each.log_softmax(1) for each in logits]
    backbone, *branches = (-(targets * each).sum(1).mean() for each in log_p)
    # Both branches teach the backbone, the shallow branch teaches the deep one.
    synergy = sum(
        (log_p[j].detach().exp() * (log_p[j].detach() - log_p[i])).sum(1).mean()
        for j, i in ((1, 0), (2, 0), (1, 2))
    )
    return backbone, sum(branches), synergy


def tiny_network(state):
    network = TinyNetwork("", num_classes=7)
    network.load_state_dict(state)
    return network


def test_a_run_is_sgd_on_the_weighted_loss_with_an_average_of_the_weights(run):
    """Two steps of warmup, then 0.1, halved after the first and the second epoch."""
    folder, initial, batches = run
    network, average = tiny_network(initial).train(), {k: v.clone() for k, v in initial.items()}
    velocity = [torch.zeros_like(parameter) for parameter in network.parameters()]
    rates = [0.05, 0.1, 0.1, *[0.05] * STEPS, *[0.025] * STEPS]
    losses, correct, images = torch.zeros(3 * STEPS, 4), torch.zeros(3, 3), 21
    for step, ((pixels, labels), rate) in enumerate(zip(batches, rates, strict=True)):
        logits = network(pixels)
        backbone, branches, synergy = loss_terms(logits, labels)
        total = backbone + AUX_WEIGHT * branches + SYNERGY_WEIGHT * synergy
        terms = torch.stack([total, backbone, branches, synergy]).detach()
        losses[step] = terms * len(labels) / images
        correct[step // STEPS] += torch.stack([(x.argmax(1) == labels).sum() for x in logits])
        gradients = torch.autograd.grad(total, list(network.parameters()))
        with torch.no_grad():
            for p, v, g in zip(network.parameters(), velocity, gradients, strict=True):
                v.mul_(MOMENTUM).add_(g + WEIGHT_DECAY * p)
                p.sub_(rate * v)
            for name, value in network.state_dict().items():
                if value.is_floating_point():
                    average[name] = DECAY * average[name] + (1 - DECAY) * value
    saved = load_checkpoint(folder)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(saved["model"][name], value, rtol=1e-3, atol=1e-4, msg=name)
        if value.is_floating_point():
            torch.testing.assert_close(saved["ema"][name], average[name], rtol=1e-3, atol=1e-4)
    for epoch, record in enumerate(log_records(folder)):
        assert record["lr"] == pytest.approx(rates[(epoch + 1) * STEPS - 1])
        logged = [
            record["train"]["losses"][x] for x in ("total", "backbone", "branches", "synergy")
        ]
        own = losses[epoch * STEPS : (epoch + 1) * STEPS].sum(0).tolist()
        assert logged == pytest.approx(own, rel=1e-3)
        errors = (100 - 100 * correct[epoch] / images).tolist()
        assert record["train"]["top1_errors"] == pytest.approx(errors, abs=0.01)


def pixels_of(path, size):
    """Decode, resize to a square, take the center and normalize, with PIL and torch."""
    side = round(size * 256 / 224)
    with Image.open(path) as image:
        image = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    start = round((side - size) / 2)
    image = np.asarray(image.crop((start, start, start + size, start + size)))
    return ((torch.from_numpy(image.copy()) / 255 - MEAN) / STD).permute(2, 0, 1)


def ranks(scores, labels):
    """Return the rank of each label among its scores (B, K), 0 for the best."""
    return (scores > scores.gather(1, labels[:, None])).sum(1)


@pytest.mark.parametrize(("part", "weights"), [("validation", "model"), ("ema", "ema")])
def test_top_1_and_top_5_errors_are_those_of_the_ranks(run, data, part, weights):
    paths = sorted((data / "val").glob("*/*.png"))
    labels = torch.tensor(["abcdefg".index(path.parent.name) for path in paths])
    images = torch.stack([pixels_of(path, 40) for path in paths])
    network = tiny_network(load_checkpoint(run[0])[weights]).eval()
    with torch.no_grad():
        logits = network(images)
    record = log_records(run[0])[-1][part]
    found = [ranks(each, labels) for each in (*logits, torch.stack(logits).softmax(-1).mean(0))]
    for count in (1, 5):
        errors = [100 * (each >= count).double().mean().item() for each in found]
        logged = [*record[f"top{count}_errors"], record[f"ensemble_top{count}_error"]]
        assert logged == pytest.approx(errors)
    assert record["images"] == 14


@pytest.mark.parametrize("count", [1, 5])
def test_a_label_at_rank_k_counts_among_the_top_k(imagenet, count):
    logits = torch.arange(10.0).flip(0).expand(10, 10)  # class i has rank i
    topk_correct = imagenet.metrics.topk_correct
    each = [int(topk_correct(logits[:1], torch.tensor([rank]), count)) for rank in range(10)]
    assert each == [1] * count + [0] * (10 - count)
    counts = imagenet.evaluate.batch_counts([logits], torch.arange(10))
    assert (counts["top1"].tolist(), counts["top5"].tolist()) == ([1, 1], [5, 5])


@pytest.mark.parametrize(
    ("arch", "channels"), [("resnet18", (256, 512, 1024)), ("resnet50", (1024, 2048, 4096))]
)
def test_each_stage_of_a_branch_halves_the_resolution(imagenet, arch, channels):
    """From 28x28 pixels after layer2 and from 14x14 after layer3."""
    shapes = []
    with torch.device("meta"):
        network = imagenet.resnet.build(arch, num_classes=5).eval()
        for branch in network.branches:
            for stage in branch.stages:
                stage.register_forward_hook(lambda m, given, out: shapes.append(tuple(out.shape)))
        network(torch.empty(1, 3, 224, 224))
    assert shapes == [(1, c, side, side) for c, side in zip(channels, (14, 7, 7), strict=True)]


def test_a_resumed_float16_run_keeps_its_gradient_scale(imagenet, data, tmp_path):
    flags = (
        f"-a resnet18 --image-size 40 -b 8 --lr-milestones 9 -j 0 --device cpu --save {tmp_path}"
    )
    argv = [str(data), *flags.split(), "--dtype", "half"]
    assert run_train(imagenet, [*argv, "--epochs", "1"]) == 0
    content = load_checkpoint(tmp_path)
    content["scaler"].update(scale=4.0, _growth_tracker=100)
    torch.save(content, tmp_path / "checkpoint.pt")
    assert run_train(imagenet, [*argv, "--epochs", "2", "--resume", "auto"]) == 0
    scaler = load_checkpoint(tmp_path)["scaler"]
    assert (scaler["scale"], scaler["_growth_tracker"]) == (4.0, 100 + STEPS)


@pytest.mark.parametrize("first_step", [0, 1, 2])
@pytest.mark.parametrize(("rank", "counts"), [(0, (3, 3, 2)), (1, (3, 3, 2)), (2, (2, 2, 1))])
def test_a_resumed_epoch_weighs_each_step_by_its_own_batch(
    imagenet, data, monkeypatch, first_step, rank, counts
):
    """One of three processes; the batches of the 21 images have 8, 8 and 5."""
    for module in (imagenet.distributed, imagenet.loader):
        monkeypatch.setattr(module, "world_size", lambda: 3)
    monkeypatch.setattr(imagenet.distributed, "rank", lambda: rank)
    files = imagenet.data.find_image_sets(data, None, 36, "crop").train
    sampler = imagenet.loader.ResumableBatchSampler(21, batch_size=8, seed=0)
    dataset = imagenet.data.AugmentedDataset(files, 0)
    loader = imagenet.loader.TrainingLoader(dataset, sampler, 0, 2, CPU, None)
    batches = list(loader.epoch(0, first_step))
    assert [len(batch.labels) for batch in batches] == list(counts[first_step:])
    fractions = [count / whole for count, whole in zip(counts, (8, 8, 5), strict=True)]
    assert [batch.batch_fraction for batch in batches] == fractions[first_step:]


def hooked_trainer(imagenet, first_nonfinite_step):
    """What `CheckpointHook` needs of a trainer, after nine steps."""
    return SimpleNamespace(
        step=9,
        epoch=1,
        sums=imagenet.metrics.MetricSums(CPU),
        first_nonfinite_step=lambda: first_nonfinite_step,
    )


def test_checkpoints_are_minutes_apart(imagenet, monkeypatch):
    clock, saved = SimpleNamespace(now=0.0), []
    monkeypatch.setattr(imagenet.preemption, "time", SimpleNamespace(monotonic=lambda: clock.now))
    trainer = hooked_trainer(imagenet, first_nonfinite_step=0)
    with imagenet.preemption.PreemptionGuard() as guard:
        hook = imagenet.preemption.CheckpointHook(
            guard, trainer, lambda sums: saved.append(clock.now), minutes=2
        )
        for clock.now in (1.0, 119.0, 120.0, 121.0, 239.0, 240.0, 400.0):
            hook()
    assert saved == [120.0, 240.0, 400.0]


def test_nothing_is_saved_after_a_nonfinite_loss(imagenet):
    """Neither at the end of an epoch nor at a checkpoint that is due."""
    trainer, saved = hooked_trainer(imagenet, first_nonfinite_step=7), []
    with imagenet.preemption.PreemptionGuard() as guard:
        hook = imagenet.preemption.CheckpointHook(guard, trainer, saved.append, 0)
        for save in (hook, hook.save):
            with pytest.raises(imagenet.command_line.UserError, match=r"since step 7 .*epoch 2\)"):
                save()
    assert not saved


def test_throughput_is_of_all_processes_and_waiting_is_in_percent(imagenet, monkeypatch):
    """Two batches of 8 images, 2 of them of this process; 1 s a batch and 3 s a step."""
    clock, Batch = SimpleNamespace(now=100.0), imagenet.loader.Batch
    monkeypatch.setattr(imagenet.progress, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def batches():
        for _ in range(2):
            clock.now += 1
            yield Batch(torch.zeros(2, 3, 4, 4), torch.zeros(2), 0.25)

    with imagenet.progress.EpochProgress("epoch 1/1", 0, 2) as progress:
        for _ in progress.track(batches()):
            clock.now += 3
        assert progress.times() == {"train_s": 8, "images_per_s": 2, "waiting_percent": 25}
