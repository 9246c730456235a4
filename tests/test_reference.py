"""Network, loss, gradients and SGD equal those of the released code (see reference.py)."""

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
    """Return WRN-16-1 for 100 classes with the parameters of the reference."""
    model = wrn.wide_resnet.WideResNet(16, 1, 100)
    model.load_state_dict(wrn.legacy.legacy_state_dict(reference.parameters(released)))
    return model


def stored(released, prefix, dtype=torch.float32):
    """Return the reference's logits (3, 8, 100), the backbone's first."""
    names = ("main", "ep1", "ep2")
    return torch.stack([torch.from_numpy(released[f"{prefix}/{n}"]) for n in names]).to(dtype)


def assert_near(actual, expected, atol):
    actual, expected = (torch.as_tensor(value).detach().double() for value in (actual, expected))
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def test_logits_and_running_statistics(wrn, released, network):
    images, _ = reference.inputs()
    assert_near(torch.stack(network(images)), stored(released, "train"), 1e-5)
    state = network.state_dict()
    for name, total in zip(released["running_names"], released["running_sums"], strict=True):
        (key,) = wrn.legacy.legacy_state_dict({str(name): torch.zeros(0)}).keys() - {
            key for key in state if key.endswith("num_batches_tracked")
        }
        # A sum of up to 128 values, each within 1e-6 of the released code's.
        assert_near(state[key].double().sum(), float(total), 1e-4)
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
    index_of = {0: 1, 1: 2, 2: 0}  # the reference's order is ep1, ep2, main
    for (student, teacher), value in zip(released["kl_pairs"], released["kl"], strict=True):
        assert_near(matrix[index_of[int(teacher)], index_of[int(student)]], value, 1e-6)


def test_cross_entropy_of_each_classifier(wrn, released, network):
    images, labels = reference.inputs()
    logits = network(images)
    for index, reference_index in ((0, 2), (1, 0), (2, 1)):
        loss = wrn.synergy.SynergyLoss("baseline")([logits[index]], labels).total
        assert_near(loss, released["ce"][reference_index], 1e-5)


def test_gradients(wrn, released, network):
    """In float64, because rounding in float32 changes the sign of a ReLU input on some CPUs."""
    images, labels = reference.inputs()
    network.double()
    wrn.synergy.SynergyLoss()(network(images.double()), labels).total.backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    names = [str(name) for name in released["grad_names"]]
    assert len(names) == len(gradients) == 84
    for name, norm in zip(names, released["grad_norms"], strict=True):
        (key,) = wrn.legacy.legacy_state_dict({name: torch.zeros(0)})
        assert float(gradients[key].norm()) == pytest.approx(float(norm), rel=1e-4)
        if f"grad/{name}" in released:
            expected = torch.from_numpy(released[f"grad/{name}"]).double()
            assert (gradients[key] - expected).norm() <= 1e-4 * expected.norm()


def run_sgd(wrn, network, dtype):
    """Run ten training steps; return the losses and the network in evaluation mode."""
    trainer = wrn.engine.Trainer(
        network.to(dtype),
        wrn.synergy.SynergyLoss(),
        wrn.schedule.StepSchedule(0.1, (), 0.2),
        5e-4,
        torch.float32,
        torch.device("cpu"),
    )
    # As in the released code: the memory format affects rounding, which a few steps amplify.
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


def test_logits_and_losses_in_float64(wrn, released, network):
    """The only remaining difference is the 1e-8 that the released code adds to probabilities."""
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
    """All ten steps agree, because rounding does not change the sign of a ReLU input."""
    losses, model = run_sgd(wrn, network, torch.float64)
    assert_near(losses, released["f64/traj/loss"], 2e-5)
    with torch.no_grad():
        logits = model(reference.inputs()[0].double())[0]
    assert_near(logits, released["f64/traj/main_eval"], 2e-5)
