"""Probabilities as bytes: the error, and the meaning of a zero."""

import numpy as np
import pytest
import torch

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.teachers.combine import as_logits
from nnunetv2_kd.teachers.stored import quantization


def test_error_is_at_most_the_stated_one():
    p = np.linspace(0, 1, 100_001, dtype=np.float32)
    error = np.abs(quantization.decode(quantization.encode(p)) - p)
    assert error.max() == pytest.approx(quantization.MAX_ERROR, rel=1e-2)
    assert error.max() <= quantization.MAX_ERROR + 1e-6
    assert error[p < 1e-3].max() < 3e-4  # finer where a teacher is nearly sure


def test_every_byte_comes_back():
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(quantization.encode(quantization.decode(every)), every)
    assert quantization.decode(every)[[0, 255]].tolist() == [0, 1]


def test_what_lies_outside_of_0_and_1_is_taken_for_the_nearest():
    assert quantization.encode(np.array([-0.1, 1.1], np.float32)).tolist() == [0, 255]


def test_softmax_heads_leave_the_background_out_and_get_it_back(rng):
    logits = torch.randn(3, 4, 5, 6, generator=rng)
    stored = quantization.stored_channels(logits, sigmoid=False)
    assert stored.shape == (2, 4, 5, 6)
    torch.testing.assert_close(quantization.all_probabilities(stored[None], sigmoid=False)[0], logits.softmax(0))


def test_padding_with_0_is_background():
    padded = quantization.all_probabilities(torch.zeros(1, 2, 3, 3), sigmoid=False)
    assert as_logits(padded, False).argmax(dim=1).eq(0).all()
    assert float(padded[:, 0].min()) == 1


def test_sigmoid_heads_are_stored_as_they_are(rng):
    logits = torch.randn(3, 4, 5, generator=rng)
    stored = quantization.stored_channels(logits, sigmoid=True)
    probabilities = quantization.all_probabilities(stored[None], sigmoid=True)
    torch.testing.assert_close(as_logits(probabilities, True)[0], logits)


def test_nothing_is_infinitely_sure():
    for sigmoid in (False, True):
        sure = quantization.all_probabilities(torch.tensor([[0.0, 1.0]]).view(1, 2, 1), sigmoid)
        assert float(as_logits(sure, sigmoid).abs().max()) < 14


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_not_surely_background(value):
    p = np.full((2, 3), 0.5, np.float32)
    p[1, 1] = value
    with pytest.raises(KDError, match="the teacher's probabilities are not finite"):
        quantization.encode(p)
