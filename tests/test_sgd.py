"""SGD: the fused kernel gives the steps of the plain one; optimizer state is loaded strictly."""

import copy

import pytest
import torch


def convolutions(memory_format):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 4, 3))
    return network.to(memory_format=memory_format)


def fill_gradients(network, seed, value=None):
    """Set random or constant gradients, in the memory format of their parameters."""
    torch.manual_seed(seed)
    for parameter in network.parameters():
        grad = torch.randn(parameter.shape) if value is None else torch.full_like(parameter, value)
        parameter.grad = torch.empty_like(parameter).copy_(grad)


def assert_same(network, expected):
    for a, b in zip(network.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def step(network, optimizer, seeds):
    for seed in seeds:
        fill_gradients(network, seed)
        optimizer.step()


def plain_sgd(network):
    return torch.optim.SGD(network.parameters(), 0.1, 0.9, weight_decay=5e-4, foreach=False)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_fused_steps_equal_plain_steps(wrn, memory_format):
    network = convolutions(memory_format)
    other = copy.deepcopy(network)
    step(network, wrn.sgd.make_sgd(network, 0.1, 0.9, 5e-4), range(3))
    step(other, plain_sgd(other), range(3))
    assert_same(network, other)


def test_skipped_step_leaves_momentum_at_zero(wrn):
    """The float16 gradient scaler skips steps with infinite gradients, often the first one."""
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


def test_loaded_momentum_gets_the_memory_format_of_its_parameter(wrn, tmp_path):
    """Checkpoints of the released code have contiguous buffers."""
    other = convolutions(torch.contiguous_format)
    plain = plain_sgd(other)
    step(other, plain, range(3))
    network = copy.deepcopy(other).to(memory_format=torch.channels_last)
    optimizer = wrn.sgd.make_sgd(network, 0.1, 0.9, 5e-4)
    wrn.checkpoint.load_optimizer(optimizer, plain.state_dict(), tmp_path / "x.pt")
    step(network, optimizer, [4, 5])
    step(other, plain, [4, 5])
    assert_same(network, other)


def test_no_buffers_without_momentum(wrn):
    network = convolutions(torch.contiguous_format)
    optimizer = wrn.sgd.make_sgd(network, 0.1, 0.0, 0.0)
    step(network, optimizer, [0])
    assert not optimizer.state_dict()["state"]


@pytest.fixture
def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.pop("state"),
        lambda s: s.update(state=[]),
        lambda s: s["state"][0].update(momentum_buffer=torch.zeros(1)),
        lambda s: s["state"].pop(0),
        lambda s: s["state"][0].pop("momentum_buffer"),
        lambda s: s["state"][0].update(surplus=torch.zeros(3, 4)),
        lambda s: s.update(surplus=1),
        lambda s: s["state"].update({99: {"momentum_buffer": torch.zeros(1)}}),
        lambda s: s.update(param_groups=[]),
        lambda s: s["param_groups"][0].update(params=[0]),
    ],
)
def test_optimizer_state_that_does_not_fit_is_an_error(wrn, network, tmp_path, change):
    optimizer = wrn.sgd.make_sgd(network, 0.1, 0.9, 0.0)
    state = copy.deepcopy(optimizer.state_dict())
    change(state)
    with pytest.raises(wrn.command_line.UserError, match="can't be resumed"):
        wrn.checkpoint.load_optimizer(optimizer, state, tmp_path / "x.pt")


def test_optimizer_buffers_are_cast_and_hyperparameters_kept(wrn, network, tmp_path, capsys):
    optimizer = wrn.sgd.make_sgd(network, 0.1, 0.9, 0.0)
    state = copy.deepcopy(optimizer.state_dict())
    buffer = torch.randn(3)
    state["state"][1]["momentum_buffer"] = buffer.double()
    state["param_groups"][0] = {"params": [0, 1, 2, 3], "momentum": float("nan")}
    wrn.checkpoint.load_optimizer(optimizer, state, tmp_path / "x.pt")
    assert optimizer.param_groups[0]["momentum"] == 0.9
    loaded = optimizer.state[network[0].bias]["momentum_buffer"]
    assert loaded.dtype == torch.float32 and torch.equal(loaded, buffer)
    assert "cast" in capsys.readouterr().out
