"""Losses and accuracy per example equal torch.nn.functional, in every order of axes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from lltoolkit.tensors.measures import Measures, accuracy, cross_entropy, mse
from tests.models import PADDING, seeded


def batch(shape, n_classes, seed=0, padded=False):
    """Logits (B, C, ...) and labels (B, ...), some of them padding."""

    def make():
        logits = torch.randn(shape[0], n_classes, *shape[1:], dtype=torch.float64)
        target = torch.randint(n_classes, shape)
        if padded:
            target[torch.rand(shape) < 0.4] = PADDING
            target.flatten(1)[:, 0] = 0  # one position counts in every example
        return logits, target

    return seeded(make, seed)


@given(st.sampled_from([(4,), (3, 5), (2, 3, 4)]), st.integers(2, 6), st.integers(0, 99), st.booleans())
def test_cross_entropy_and_accuracy_equal_a_loop_over_examples(shape, n_classes, seed, padded):
    logits, target = batch(shape, n_classes, seed, padded and len(shape) > 1)
    losses, right = cross_entropy(logits, target), accuracy(logits, target)
    assert losses.shape == right.shape == (shape[0],)
    for place in range(shape[0]):
        one, labels = logits[place : place + 1], target[place : place + 1]
        expected = functional.cross_entropy(one, labels, ignore_index=PADDING)
        assert float(losses[place]) == pytest.approx(float(expected), rel=1e-12)
        counted = labels != PADDING
        assert float(right[place]) == pytest.approx(float((one.argmax(1) == labels)[counted].double().mean()))


def test_logits_with_the_classes_last_are_taken_where_only_that_fits():
    logits, target = batch((3, 5), 4, padded=True)
    torch.testing.assert_close(cross_entropy(logits.movedim(1, -1), target), cross_entropy(logits, target))
    torch.testing.assert_close(accuracy(logits.movedim(1, -1), target), accuracy(logits, target))


def test_an_example_of_padding_alone_has_loss_0():
    logits, target = batch((2, 3), 4)
    target[1] = PADDING
    assert float(cross_entropy(logits, target)[1]) == 0


def test_nan_logits_give_nan_and_not_class_0():
    logits, target = batch((3,), 4)
    logits[1, 2] = math.nan
    target[1] = 2  # argmax takes NaN for the largest
    assert accuracy(logits, target).isnan().tolist() == [False, True, False]
    assert cross_entropy(logits, target).isnan().tolist() == [False, True, False]


def test_overflow_stays_infinite():
    logits, target = torch.tensor([[0.0, math.inf], [1.0, 2.0]]), torch.tensor([0, 0])
    assert not cross_entropy(logits, target)[0].isfinite()
    assert cross_entropy(logits, target)[1].isfinite()


@pytest.mark.parametrize(
    ("output", "target"),
    [((4,), (4,)), ((4, 1), (4,)), ((4,), (4, 1)), ((4, 3), (4, 3)), ((4, 2, 3), (4, 2, 3)), ((1, 2), (1, 2))],
)
def test_mse_is_the_mean_over_the_outputs_of_an_example(output, target):
    a, b = seeded(lambda: (torch.randn(output), torch.randn(target)), 0)
    values = mse(a, b)
    assert values.shape == output[:1]
    for place in range(len(values)):
        expected = sum((x - y) ** 2 for x, y in zip(a[place].flatten(), b[place].flatten(), strict=True))
        assert float(values[place]) == pytest.approx(float(expected) / a[place].numel(), rel=1e-5)


@pytest.mark.parametrize(
    ("output", "target"), [((4, 3), (4, 2)), ((4, 2, 3), (4, 3, 2)), ((4, 1), (2, 2)), ((4,), (3,))]
)
def test_mse_refuses_what_would_only_fit_by_size(output, target):
    with pytest.raises(ValueError, match=r"the output \(4.* and the target .* differ in shape"):
        mse(torch.zeros(output), torch.zeros(target))


def test_an_output_that_is_no_tensor_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"returns a tuple; a tensor or an object with \.logits.*pass loss="):
        cross_entropy((torch.zeros(2, 3),), torch.zeros(2))


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"alpha": accuracy}, "'alpha'"),
        ({"loss": accuracy}, r"'loss'.*set by loss="),
        (["loss_se"], "'loss_se'"),
        ({"f": 3}, "metrics=3 is neither a name"),
    ],
)
def test_a_metric_with_a_name_of_a_result_is_refused(metrics, message):
    with pytest.raises(ValueError, match=message):
        Measures("cross_entropy", metrics, None)


def test_the_loss_may_be_named_among_the_metrics():
    assert set(Measures("cross_entropy", ["loss", "accuracy"], None).functions) == {"loss", "accuracy"}
    assert set(Measures("cross_entropy", "accuracy", None).functions) == {"loss", "accuracy"}
