"""Network, loss, gradients and SGD against numbers of the released code (see reference.py)."""

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
    """WRN-16-1 for 100 classes, with the reference's initial parameters."""
    model = wrn.wide_resnet.WideResNet(16, 1, 100)
    model.load_state_dict(wrn.legacy.legacy_state_dict(reference.parameters(released)))
    return model


def stored(released, prefix, dtype=torch.float32):
    """Stored logits (3, 8, 100) in our order: the backbone's first."""
    names = ("main", "ep1", "ep2")
    return torch.stack([torch.from_numpy(released[f"{prefix}/{n}"]) for n in names]).to(dtype)


def assert_near(actual, expected, atol):
    actual, expected = (torch.as_tensor(value).detach().double() for value in (actual, expected))
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def test_logits_in_training_and_running_statistics(wrn, released, network):
    images, _ = reference.inputs()
    assert_near(torch.stack(network(images)), stored(released, "train"), 1e-5)
    state = network.state_dict()
    for name, total in zip(released["running_names"], released["running_sums"], strict=True):
        (ours,) = wrn.legacy.legacy_state_dict({str(name): torch.zeros(0)}).keys() - {
            key for key in state if key.endswith("num_batches_tracked")
        }
        # A sum over up to 128 values, each within 1e-6 of the released code's.
        assert_near(state[ours].double().sum(), float(total), 1e-4)
    network.eval()
    assert_near(torch.stack(network(images)), stored(released, "eval"), 1e-5)


def test_cross_entropies_and_divergences(wrn, released, network):
    images, labels = reference.inputs()
    logits = network(images)
    losses = wrn.synergy.SynergyLoss()(logits, labels)
    ep1, ep2, main = released["ce"]
    assert_near(losses.backbone, main, 1e-5)
    assert_near(losses.branches, ep1 + ep2, 2e-5)
    assert_near(losses.synergy, released["kl"].sum(), 6e-6)
    assert_near(losses.total, released["loss"], 2e-5)
    matrix = wrn.synergy.pairwise_divergences(logits)
    place = {0: 1, 1: 2, 2: 0}  # the reference's order is ep1, ep2, main
    for (student, teacher), value in zip(released["kl_pairs"], released["kl"], strict=True):
        assert_near(matrix[place[int(teacher)], place[int(student)]], value, 1e-6)


def test_each_cross_entropy_alone(wrn, released, network):
    images, labels = reference.inputs()
    logits = network(images)
    for ours, theirs in ((0, 2), (1, 0), (2, 1)):
        loss = wrn.synergy.SynergyLoss("baseline")([logits[ours]], labels).total
        assert_near(loss, released["ce"][theirs], 1e-5)


def test_gradients(wrn, released, network):
    """In float64, since in float32 rounding flips the sign of a ReLU on some CPUs."""
    images, labels = reference.inputs()
    network.double()
    wrn.synergy.SynergyLoss()(network(images.double()), labels).total.backward()
    ours = {name: p.grad for name, p in network.named_parameters()}
    names = [str(name) for name in released["grad_names"]]
    assert len(names) == len(ours) == 84
    for name, norm in zip(names, released["grad_norms"], strict=True):
        (key,) = wrn.legacy.legacy_state_dict({name: torch.zeros(0)})
        assert float(ours[key].norm()) == pytest.approx(float(norm), rel=1e-4)
        if f"grad/{name}" in released:
            whole = torch.from_numpy(released[f"grad/{name}"]).double()
            assert (ours[key] - whole).norm() <= 1e-4 * whole.norm()


def run_sgd(wrn, network, dtype):
    """Ten steps of the recipe through the trainer; the losses, and its network."""
    trainer = wrn.engine.Trainer(
        network.to(dtype),
        wrn.synergy.SynergyLoss(),
        wrn.schedule.StepSchedule(0.1, (), 0.2),
        5e-4,
        torch.float32,
        torch.device("cpu"),
    )
    # The released code's layout: another one rounds otherwise, which a few steps amplify.
    trainer.memory_format = torch.contiguous_format
    trainer.model.to(memory_format=trainer.memory_format)
    losses = []
    for images, labels in zip(*reference.trajectory_inputs(), strict=True):
        _, loss = trainer.train_step(wrn.loader.Batch(images.to(dtype), labels, 1.0))
        losses.append(float(loss.total.detach()))
    return torch.tensor(losses, dtype=dtype), trainer.model.eval()


def test_ten_steps_of_sgd(wrn, released, network):
    losses, _ = run_sgd(wrn, network, torch.float32)
    expected = torch.from_numpy(released["traj/loss"])
    assert_near(losses[:3], expected[:3], 2e-5)
    assert_near(losses[3:], expected[3:], 1e-2)


def test_float64(wrn, released, network):
    """In float64 nothing is left but the release's 1e-8 inside the divergences."""
    images, labels = reference.inputs()
    network.double()
    logits = network(images.double())
    expected = stored(released, "f64/train", torch.float64)
    assert_near(torch.stack(logits), expected, 1e-9)
    losses = wrn.synergy.SynergyLoss()(logits, labels)
    assert_near(losses.backbone, released["f64/ce"][2], 1e-9)
    assert_near(losses.branches, released["f64/ce"][:2].sum(), 1e-9)
    assert_near(losses.synergy, released["f64/kl"].sum(), 6 * 4e-7)
    assert_near(losses.total, released["f64/loss"], 5e-6)
    with torch.no_grad():
        assert_near(network.eval()(images.double())[0], released["f64/eval/main"], 1e-9)


def test_ten_steps_of_sgd_in_float64(wrn, released, network):
    """To the last step and its logits: here no sign of a ReLU flips by rounding."""
    losses, model = run_sgd(wrn, network, torch.float64)
    assert_near(losses, released["f64/traj/loss"], 2e-5)
    with torch.no_grad():
        logits = model(reference.inputs()[0].double())[0]
    assert_near(logits, released["f64/traj/main_eval"], 2e-5)
