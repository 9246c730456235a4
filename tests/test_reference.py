"""Network, loss, gradients, SGD and files equal those of the released code (see reference.py)."""

import numpy as np
import pytest
import reference
import torch


@pytest.fixture(scope="module")
def released():
    with np.load(reference.FILE) as file:
        yield file


@pytest.fixture
def network(wrn, released):
    """WRN-16-1 for 100 classes with the parameters of the reference."""
    model = wrn.wide_resnet.WideResNet(16, 1, 100)
    model.load_state_dict(wrn.wide_resnet.released_state_dict(reference.parameters(released)))
    return model


def assert_near(actual, expected, atol):
    actual, expected = (torch.as_tensor(value).detach().double() for value in (actual, expected))
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("dtype", "part", "atol"), [(torch.float32, "", 1e-5), (torch.float64, "f64/", 1e-9)]
)
def test_logits_losses_and_running_statistics(wrn, released, network, dtype, part, atol):
    """In float64, they differ only by the 1e-8 that the released code adds to probabilities."""
    images, labels = reference.inputs()
    logits = network.to(dtype)(images.to(dtype))
    for each, name in zip(logits, ("main", "ep1", "ep2"), strict=True):
        assert_near(each, released[f"{part}train/{name}"], atol)
    losses = wrn.synergy.SynergyLoss()(logits, labels)
    ep1, ep2, main = released[f"{part}ce"]
    assert_near(losses.backbone, main, atol)
    assert_near(losses.branches, ep1 + ep2, 2 * atol)
    assert_near(losses.total, released[f"{part}loss"], 2 * atol + 5e-6)
    matrix = wrn.synergy.pairwise_divergences(logits)
    index_of = {0: 1, 1: 2, 2: 0}  # the reference's order is ep1, ep2, main
    for (student, teacher), value in zip(released["kl_pairs"], released[f"{part}kl"], strict=True):
        assert_near(matrix[index_of[int(teacher)], index_of[int(student)]], value, 1e-6)
    state = network.state_dict()
    for name, total in zip(released["running_names"], released["running_sums"], strict=True):
        # A sum of up to 128 values, each within 1e-6 of the released code's.
        key = wrn.wide_resnet.released_name(str(name))
        assert_near(state[key].double().sum(), float(total), 1e-4)
    assert_near(network.eval()(images.to(dtype))[0], released[f"{part}eval/main"], atol)


def test_gradients(wrn, released, network):
    """In float64, because rounding in float32 changes the sign of a ReLU input on some CPUs."""
    images, labels = reference.inputs()
    network.double()
    wrn.synergy.SynergyLoss()(network(images.double()), labels).total.backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    names = [str(name) for name in released["grad_names"]]
    assert len(names) == len(gradients) == 84
    for name, norm in zip(names, released["grad_norms"], strict=True):
        gradient = gradients[wrn.wide_resnet.released_name(name)]
        assert float(gradient.norm()) == pytest.approx(float(norm), rel=1e-4)
        if f"grad/{name}" in released:
            expected = torch.from_numpy(released[f"grad/{name}"]).double()
            assert (gradient - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ten_steps_of_sgd(wrn, released, network, dtype):
    """In float64 all agree, because rounding does not change the sign of a ReLU input."""
    config = wrn.flags.with_recipe(wrn.flags.parse([]))
    # As in the released code: the memory format affects rounding, which a few steps amplify.
    compute = wrn.distributed.Compute(torch.device("cpu"), memory_format=torch.contiguous_format)
    schedule = wrn.schedule.Schedule(config, steps_per_epoch=10, clears_momentum=True)
    loss = wrn.synergy.SynergyLoss()
    trainer = wrn.engine.Trainer(network.to(dtype), loss, schedule, config, compute)
    batches = [
        wrn.evaluation.Batch(images.to(dtype), labels, len(labels))
        for images, labels in zip(*reference.trajectory_inputs(), strict=True)
    ]
    expected = released["f64/traj/loss" if dtype == torch.float64 else "traj/loss"]
    count = 10 if dtype == torch.float64 else 3
    losses = [trainer.train_step(batch) for batch in batches[:count]]
    assert_near(torch.stack(losses), expected[:count], 2e-5)
    if dtype == torch.float64:
        with torch.no_grad():
            logits = trainer.model.eval()(reference.inputs()[0].double())[0]
        assert_near(logits, released["f64/traj/main_eval"], 2e-5)


def test_a_released_checkpoint_is_evaluated(wrn, released, network, cifar100, tmp_path, capsys):
    """Its errors on CIFAR-100 are those of the same weights and images, normalized by hand."""
    path, root = tmp_path / "model.pt7", tmp_path / "root"
    params = reference.parameters(released)
    torch.save({"params": params, "optimizer": {}, "epoch": 200}, path)
    words = ["--evaluate", "--resume", str(path), "--dataroot", str(root)]
    assert wrn.status("main", words) == 0
    pixels = torch.from_numpy(cifar100["test"]).view(-1, 3, 32, 32)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ([125.3, 123, 113.9], [63, 62.1, 66.7]))
    with torch.no_grad():
        logits = torch.stack(network.eval()((pixels - mean) / std))
    labels = torch.tensor([(7 * i + 1) % 100 for i in range(12)])
    out = capsys.readouterr().out
    assert "model.pt7: WRN-16-1" in out
    for name, each in zip(("backbone", "shallow branch", "deep branch"), logits, strict=True):
        top1 = 100 * (each.argmax(-1) != labels).double().mean()
        top5 = 100 * (each.topk(5).indices != labels[:, None]).all(-1).double().mean()
        assert f"[{name}] top-1 error {top1:.2f} %, top-5 error {top5:.2f} %" in out
    assert wrn.status("main", ["--predict", "a.png", "--resume", str(path)]) == 2
    assert "has no class names; --predict takes a run or an export" in capsys.readouterr().err
