"""The loss against its definition; who learns from whom; properties for any logits."""

import math
from operator import gt, lt, ne

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

DIRECTIONS = {"bidirectional": ne, "top-down": gt, "bottom-up": lt}  # of teacher and student
LABELS = torch.tensor([0, 1, 2, 6, 6])


@pytest.fixture(scope="module")
def loss(wrn):
    return wrn.synergy.SynergyLoss


def random_logits(count, batch=5, classes=7, dtype=torch.float64):
    draws = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(count, batch, classes, dtype=torch.float64, generator=draws)
    return [each.to(dtype).requires_grad_() for each in logits]


def softmax(values):
    exponentials = np.exp(values - values.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def double_loop(logits, direction):
    """Return the synergy loss and its gradients, those of KL(p || q) in q's logits: q - p."""
    p = [softmax(each.detach().double().numpy()) for each in logits]
    depth = [len(p), *range(1, len(p))]  # the backbone's classifier is the deepest
    total, gradients = 0.0, [np.zeros_like(each) for each in p]
    for teacher in range(len(p)):
        for student in range(len(p)):
            if not DIRECTIONS[direction](depth[teacher], depth[student]):
                continue
            for n, (wise, learning) in enumerate(zip(p[teacher], p[student], strict=True)):
                total += (wise * np.log(wise / learning)).sum() / len(p[0])
                gradients[student][n] += (learning - wise) / len(p[0])
    return total, gradients


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_values_and_gradients_equal_a_double_loop(loss, count, direction):
    """The gradient reaches the student only: that of a teacher would be added to its own."""
    logits = random_logits(count)
    losses = loss("dks", direction)(logits, LABELS)
    synergy, gradients = double_loop(logits, direction)
    each = [-np.log(softmax(x.detach().numpy()))[range(5), LABELS].mean() for x in logits]
    parts = [each[0] + sum(each[1:]) + synergy, each[0], sum(each[1:]), synergy]
    assert [part.item() for part in losses] == pytest.approx(parts)
    if losses.synergy.requires_grad:
        actual = torch.autograd.grad(losses.synergy, logits)
        np.testing.assert_allclose(torch.stack(actual), gradients, atol=1e-12)


def test_methods_weights_and_label_smoothing(loss):
    logits = random_logits(3)
    dks = loss("dks", aux_weight=0.5, synergy_weight=2.0)(logits, LABELS)
    torch.testing.assert_close(dks.total, dks.backbone + 0.5 * dks.branches + 2 * dks.synergy)
    ds = loss("ds")(logits, LABELS)
    torch.testing.assert_close(ds.total, dks.backbone + dks.branches)
    assert ds.synergy == 0
    for some in (logits, logits[:1]):  # whatever the network returns
        baseline = loss("baseline")(some, LABELS)
        assert (baseline.total, baseline.branches, baseline.synergy) == (dks.backbone, 0, 0)
    smooth = loss("ds", label_smoothing=0.1)(logits[:2], LABELS)
    expected = [F.cross_entropy(each, LABELS, label_smoothing=0.1) for each in logits[:2]]
    torch.testing.assert_close(torch.stack(smooth[1:3]), torch.stack(expected))
    mixed = loss("ds")(logits, F.one_hot(LABELS, 7).double())
    torch.testing.assert_close(mixed, ds)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(loss, dtype):
    logits = random_logits(3, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        losses = loss()(logits, LABELS)
    exact = loss()([each.detach().double() for each in logits], LABELS)
    assert all(part.dtype == torch.float32 for part in losses)
    assert [part.item() for part in losses] == pytest.approx([x.item() for x in exact], rel=1e-5)
    (gradient,) = torch.autograd.grad(losses.total, logits[:1])
    assert (exact.total.dtype, gradient.dtype) == (torch.float64, dtype)


@pytest.mark.parametrize(
    ("logits", "error", "says"),
    [
        ({"out": torch.zeros(5, 7)}, TypeError, r"got a dict with the keys \['out'\]"),
        (torch.zeros(5, 7), TypeError, r"one tensor of shape \(5, 7\)"),
        ([torch.zeros(5, 7, 4, 4)] * 2, ValueError, r"shapes \[\(5, 7, 4, 4\)"),
        ([torch.zeros(5, 7), torch.zeros(5, 6)], ValueError, r"\[\(5, 7\), \(5, 6\)\]"),
    ],
)
def test_other_logits_are_refused_with_what_is_expected(loss, logits, error, says):
    with pytest.raises(error, match=rf"expected a sequence of logits \(B, K\).*{says}"):
        loss()(logits, LABELS)


def test_options_are_checked_and_shown(loss):
    shown = repr(loss("ds", "top-down", 0.5, 2.0, 0.1))
    assert all(part in shown for part in ("'ds'", "'top-down'", "aux_weight=0.5", "=2.0", "=0.1"))
    with pytest.raises(ValueError, match="'dsk': expected one of baseline, ds, dks"):
        loss("dsk")
    with pytest.raises(ValueError, match="'up': expected one of bidirectional, top-down"):
        loss("dks", "up")


@st.composite
def many_logits(draw):
    """N logits (B, K) in float32, of magnitudes from 1e-3 to 1e4."""
    count, batch, classes = draw(st.tuples(*(st.integers(1, most) for most in (5, 4, 50))))
    draws = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    logits = 2 * torch.rand(count, batch, classes + 1, generator=draws) - 1
    return logits * 10 ** draw(st.floats(-3, 4))


@settings(max_examples=25, deadline=None)
@given(logits=many_logits(), data=st.data())
def test_for_any_logits(wrn, logits, data):
    """Never negative, in any order, the sum of both directions; finite; 0 where all agree."""
    rounding = 1e-6 * len(logits) ** 2 * math.log(logits.shape[-1])

    def synergy(logits, direction="bidirectional"):
        return wrn.synergy.synergy_loss(wrn.synergy.pairwise_divergences(logits), direction)

    both, down, up = (synergy(logits, direction) for direction in DIRECTIONS)
    assert min(both, down, up) >= -rounding
    order = data.draw(st.permutations(range(len(logits))))
    for same in (down + up, synergy(logits[order])):
        torch.testing.assert_close(same, both, rtol=1e-5, atol=rounding)
    assert synergy(logits[:1].expand(4, -1, -1)) == 0
    leaves = [each.bfloat16().requires_grad_() for each in logits]
    labels = torch.arange(logits.shape[1]) % logits.shape[2]
    wrn.synergy.SynergyLoss()(leaves, labels).total.backward()
    assert all(each.grad.isfinite().all() for each in leaves)
