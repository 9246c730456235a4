"""Properties of the loss that hold for any logits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

ROUNDING = 1e-6  # of the divergences in float32, times N² log K: their number and their scale
cases = settings(max_examples=60, deadline=None)


@st.composite
def many_logits(draw, limit=1e4):
    """N logits (B, K) in float32, of magnitudes from 1e-3 up to `limit`, some of them equal."""
    count, batch, classes = draw(st.tuples(*(st.integers(1, most) for most in (6, 4, 50))))
    draws = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    scale = 10 ** draw(st.floats(-3, math.log10(limit)))
    logits = (2 * torch.rand(count, batch, classes + 1, generator=draws) - 1) * scale
    if draw(st.booleans()):
        logits[-1] = logits[0]
    return logits


def synergy(wrn, logits, direction="bidirectional"):
    return wrn.synergy.synergy_loss(wrn.synergy.pairwise_divergences(logits), direction)


def rounding(logits):
    return ROUNDING * len(logits) ** 2 * math.log(logits.shape[-1])


@cases
@given(logits=many_logits(), data=st.data())
def test_the_order_of_classifiers_does_not_matter(wrn, logits, data):
    order = data.draw(st.permutations(range(len(logits))))
    one, other = synergy(wrn, logits), synergy(wrn, logits[order])
    torch.testing.assert_close(one, other, rtol=1e-5, atol=rounding(logits))


@cases
@given(logits=many_logits(), count=st.integers(1, 6))
def test_never_negative_and_zero_where_all_agree(wrn, logits, count):
    agreeing = logits[:1].expand(count, -1, -1)
    for direction in wrn.synergy.DIRECTIONS:
        assert synergy(wrn, logits, direction) >= -rounding(logits)
        assert synergy(wrn, agreeing, direction) == 0


@cases
@given(logits=many_logits())
def test_the_two_directions_add_up_to_bidirectional(wrn, logits):
    parts = [synergy(wrn, logits, direction) for direction in ("top-down", "bottom-up")]
    torch.testing.assert_close(sum(parts), synergy(wrn, logits), rtol=1e-5, atol=rounding(logits))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@cases
@given(logits=many_logits())
def test_values_and_gradients_are_finite(wrn, dtype, logits):
    given_logits = [each.to(dtype).requires_grad_() for each in logits]
    labels = torch.arange(logits.shape[1]) % logits.shape[2]
    for direction in wrn.synergy.DIRECTIONS:
        losses = wrn.synergy.SynergyLoss("dks", direction)(given_logits, labels)
        assert all(part.isfinite() for part in losses)
        gradients = torch.autograd.grad(losses.total, given_logits)
        assert all(gradient.isfinite().all() for gradient in gradients)
