"""SGD: the fused kernel steps as the plain one, after a skipped step and in any layout too."""

import copy

import pytest
import torch


def convolutions(layout):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 4, 3))
    return network.to(memory_format=layout)


def fill_gradients(network, seed, value=None):
    """Gradients in the layouts of their parameters, as autograd has them."""
    torch.manual_seed(seed)
    for parameter in network.parameters():
        drawn = torch.randn(parameter.shape) if value is None else torch.full_like(parameter, value)
        parameter.grad = torch.empty_like(parameter).copy_(drawn)


def assert_same(network, other):
    for one, two in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)


def step(network, optimizer, seeds):
    for seed in seeds:
        fill_gradients(network, seed)
        optimizer.step()


def plain_sgd(network):
    return torch.optim.SGD(network.parameters(), 0.1, 0.9, weight_decay=5e-4, foreach=False)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_steps_are_the_plain_ones(wrn, layout):
    network = convolutions(layout)
    other = copy.deepcopy(network)
    step(network, wrn.sgd.make_sgd(network, 0.1, 0.9, 5e-4), range(3))
    step(other, plain_sgd(other), range(3))
    assert_same(network, other)


def test_a_skipped_first_step_leaves_momentum_at_zero(wrn):
    """float16's scaler skips a step whose gradients are infinite; the next is then the first."""
    network = convolutions(torch.channels_last)
    other = copy.deepcopy(network)
    optimizer, scaler = wrn.sgd.make_sgd(network, 0.1, 0.9, 5e-4), torch.amp.GradScaler("cpu")
    scaler.scale(torch.zeros(()))
    for clear in (False, True):
        if clear:
            wrn.sgd.clear_momentum(optimizer)
        fill_gradients(network, 0, float("inf"))
        scaler.step(optimizer)
        scaler.update()
        assert_same(network, other)
        step(network, optimizer, [1, 2])
        step(other, plain_sgd(other), [1, 2])
        assert_same(network, other)


def test_momentum_is_loaded_into_its_parameters_layout(wrn, tmp_path):
    """A run goes on in channels last from buffers that were saved in NCHW, as the release's are."""
    other = convolutions(torch.contiguous_format)
    plain = plain_sgd(other)
    step(other, plain, range(3))
    network = copy.deepcopy(other).to(memory_format=torch.channels_last)
    optimizer = wrn.sgd.make_sgd(network, 0.1, 0.9, 5e-4)
    wrn.checkpoint.load_optimizer(optimizer, plain.state_dict(), tmp_path / "x.pt")
    step(network, optimizer, [4, 5])
    step(other, plain, [4, 5])
    assert_same(network, other)


def test_without_momentum_there_are_no_buffers(wrn):
    network = convolutions(torch.contiguous_format)
    optimizer = wrn.sgd.make_sgd(network, 0.1, 0.0, 0.0)
    step(network, optimizer, [0])
    assert not optimizer.state_dict()["state"]
