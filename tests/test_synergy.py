"""The loss against a plain double loop, its gradients, its directions."""

import pytest
import torch


def random_logits(count, batch=5, classes=7, dtype=torch.float64, seed=0):
    draws = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, batch, classes, dtype=torch.float64, generator=draws) * 3
    return [each.to(dtype).requires_grad_() for each in logits]


def double_loop(logits, direction):
    """The synergy loss by its definition: every pair, every image, every class."""
    count, depth = len(logits), {0: len(logits)}  # the backbone's classifier is the deepest
    depth |= {i: i for i in range(1, count)}
    probabilities = [each.softmax(-1) for each in logits]
    total = torch.zeros((), dtype=torch.float64)
    for teacher in range(count):
        for student in range(count):
            teaches = {
                "bidirectional": teacher != student,
                "top-down": depth[teacher] > depth[student],
                "bottom-up": depth[teacher] < depth[student],
            }[direction]
            if teaches:
                p = probabilities[teacher].detach()
                total = total + (p * (p / probabilities[student]).log()).sum(-1).mean()
    return total


@pytest.mark.parametrize("direction", ["bidirectional", "top-down", "bottom-up"])
@pytest.mark.parametrize("count", range(1, 9))
def test_equals_the_double_loop(wrn, count, direction):
    ours, plain = random_logits(count), random_logits(count)
    labels = torch.tensor([0, 1, 2, 6, 6])
    losses = wrn.synergy.SynergyLoss("dks", direction)(ours, labels)
    synergy = double_loop(plain, direction)
    cross_entropies = [torch.nn.functional.cross_entropy(each, labels) for each in plain]
    torch.testing.assert_close(losses.synergy, synergy)
    torch.testing.assert_close(losses.backbone, cross_entropies[0])
    torch.testing.assert_close(losses.total, synergy + sum(cross_entropies))
    losses.total.backward()
    (synergy + sum(cross_entropies)).backward()
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_weights_and_methods(wrn):
    labels = torch.tensor([0, 1, 2, 6, 6])
    logits = random_logits(3)
    SynergyLoss = wrn.synergy.SynergyLoss
    dks = SynergyLoss("dks", aux_weight=0.5, synergy_weight=2.0)(logits, labels)
    torch.testing.assert_close(dks.total, dks.backbone + 0.5 * dks.branches + 2 * dks.synergy)
    ds = SynergyLoss("ds")(logits, labels)
    assert ds.synergy == 0
    torch.testing.assert_close(ds.total, dks.backbone + dks.branches)
    for given in (logits, logits[:1]):  # whatever the network returns
        baseline = SynergyLoss("baseline")(given, labels)
        assert (baseline.total, baseline.backbone) == (dks.backbone, dks.backbone)
        assert baseline.branches == baseline.synergy == 0
    with pytest.raises(ValueError, match="'dsk': expected one of baseline, ds, dks"):
        SynergyLoss("dsk")
    with pytest.raises(ValueError, match="'up': expected one of bidirectional, top-down"):
        SynergyLoss("dks", "up")


def test_classifiers_with_other_classes_are_refused(wrn):
    logits = [torch.zeros(5, 7), torch.zeros(5, 6)]
    with pytest.raises(ValueError, match=r"one shape .* \[\(5, 7\), \(5, 6\)\]"):
        wrn.synergy.SynergyLoss()(logits, torch.zeros(5).long())


def test_logits_as_one_tensor_are_refused_with_what_was_expected(wrn):
    with pytest.raises(TypeError, match=r"sequence of logits \(B, K\).*shape \(5, 7\)"):
        wrn.synergy.SynergyLoss()(torch.zeros(5, 7), torch.zeros(5).long())


def synergy(wrn, logits, direction="bidirectional"):
    return wrn.synergy.synergy_loss(wrn.synergy.pairwise_divergences(logits), direction)


def test_only_students_learn(wrn):
    """Top-down, the backbone's classifier is the deepest: it teaches all and learns from none."""
    logits = random_logits(3)
    synergy(wrn, logits, "top-down").backward()
    assert logits[0].grad.abs().max() == 0
    assert logits[1].grad.abs().max() > 0.01
    logits = random_logits(3)
    synergy(wrn, logits, "bottom-up").backward()
    assert logits[1].grad.abs().max() == 0
    assert logits[0].grad.abs().max() > 0.01


def test_classifiers_that_agree_give_exactly_zero(wrn):
    logits = [random_logits(1, 256, 1000, torch.float32)[0]] * 16
    assert wrn.synergy.pairwise_divergences(logits).abs().max() == 0
    for direction in wrn.synergy.DIRECTIONS:
        assert synergy(wrn, logits, direction) == 0


@pytest.mark.parametrize("direction", ["bidirectional", "top-down", "bottom-up"])
def test_float32_is_accurate_at_imagenet_s_size(wrn, direction):
    logits = random_logits(3, 256, 1000, torch.float32)
    exact = float(double_loop([each.double() for each in logits], direction).detach())
    assert float(synergy(wrn, logits, direction).detach()) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_float32(wrn, dtype):
    logits = random_logits(3, dtype=dtype)
    labels = torch.zeros(5, dtype=torch.int64)
    total = wrn.synergy.SynergyLoss()(logits, labels).total
    exact = wrn.synergy.SynergyLoss()([each.double() for each in logits], labels).total
    assert total.dtype == torch.float32
    assert float(total.detach()) == pytest.approx(float(exact.detach()), rel=1e-5)
    total.backward()
    assert logits[0].grad.dtype == dtype


def test_autocast_does_not_change_the_loss_or_its_gradients(wrn):
    labels = torch.tensor([0, 1, 2, 6, 6])
    inside, outside = random_logits(3, dtype=torch.float32), random_logits(3, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        losses = wrn.synergy.SynergyLoss()(inside, labels)
    plain = wrn.synergy.SynergyLoss()(outside, labels)
    assert losses == plain and all(part.dtype == torch.float32 for part in losses)
    losses.total.backward()
    plain.total.backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(inside, outside, strict=True))


def test_divergence_matrix(wrn):
    logits = random_logits(4)
    matrix = wrn.synergy.pairwise_divergences(logits).detach()
    p, q = logits[1].softmax(-1), logits[3].softmax(-1)
    torch.testing.assert_close(matrix[1, 3], (p * (p / q).log()).sum(-1).mean().detach())
    assert matrix.diagonal().abs().max() == 0
    torch.testing.assert_close(matrix.sum(), double_loop(logits, "bidirectional").detach())


def test_label_smoothing_is_pytorchs(wrn):
    logits, labels = random_logits(2), torch.tensor([0, 1, 2, 6, 6])
    losses = wrn.synergy.SynergyLoss("ds", label_smoothing=0.1)(logits, labels)
    expected = [
        torch.nn.functional.cross_entropy(each, labels, label_smoothing=0.1) for each in logits
    ]
    torch.testing.assert_close(losses.backbone, expected[0])
    torch.testing.assert_close(losses.branches, expected[1])
