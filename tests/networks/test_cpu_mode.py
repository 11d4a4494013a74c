from copy import deepcopy
from unittest import mock

import pytest
import torch

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.networks import cpu_mode
from nnunetv2_kd.networks.taps import Taps
from tests.small_networks import network

ON_EVERY_CPU = ("float32_channels_last",)
HERE = [
    way
    if way in ON_EVERY_CPU
    else pytest.param(way, marks=pytest.mark.skipif(not cpu_mode.cpu_has_bfloat16(), reason="no bfloat16 instructions"))
    for way in cpu_mode.CPU_MODES
    if way != cpu_mode.STOCK
]


def made(dims=3, residual=False, deep_supervision=True):
    torch.manual_seed(0)
    return network(deep_supervision, dims=dims, residual=residual, features=(4, 8, 16))


def as_list(output):
    return output if isinstance(output, list) else [output]


@pytest.mark.parametrize("way", HERE)
@pytest.mark.parametrize(
    ("dims", "residual", "deep_supervision"), [(3, False, True), (2, True, True), (3, True, False)]
)
def test_same_logits_and_gradients_up_to_rounding(way, dims, residual, deep_supervision, rng):
    plain = made(dims, residual, deep_supervision)
    fast = deepcopy(plain)
    cpu_mode.set_mode(fast, way)
    data = torch.randn(2, 1, *[16] * dims, generator=rng)
    tolerance = 0.05 if cpu_mode.is_bfloat16(way) else 1e-4
    for expected, found in zip(as_list(plain(data)), as_list(fast(data)), strict=True):
        assert found.dtype == torch.float32
        assert found.shape == expected.shape
        assert (found - expected).norm() <= tolerance * expected.norm()
        expected.square().mean().backward(retain_graph=True)
        found.square().mean().backward(retain_graph=True)
    expected, found = (
        torch.cat([p.grad.flatten() for p in one.parameters() if p.grad is not None]) for one in (plain, fast)
    )
    assert torch.cosine_similarity(expected, found, dim=0) > (0.98 if cpu_mode.is_bfloat16(way) else 0.9999)


@pytest.mark.parametrize("way", HERE)
def test_weights_stay_those_of_stock_nnunet(way, rng, tmp_path):
    """Saved and loaded, and overwritten by nnU-Net's predictor for every case."""
    plain, fast = made(), made()
    cpu_mode.set_mode(fast, way)
    torch.save(fast.state_dict(), tmp_path / "weights.pth")
    loaded = made()
    loaded.load_state_dict(torch.load(tmp_path / "weights.pth"))
    for expected, found in zip(plain.state_dict().values(), loaded.state_dict().values(), strict=True):
        assert torch.equal(expected, found)
        assert found.is_contiguous()
    other = {key: 0.5 * value for key, value in plain.state_dict().items()}
    fast.load_state_dict(other)
    data = torch.randn(1, 1, 16, 16, 16, generator=rng)
    loaded.load_state_dict(other)
    assert (fast(data)[0] - loaded(data)[0]).norm() <= 0.05 * loaded(data)[0].norm()
    convolution = next(m for m in fast.modules() if isinstance(m, torch.nn.Conv3d) and m.in_channels > 1)
    is_last = convolution.weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert is_last == way.endswith("channels_last")


@pytest.mark.parametrize("way", HERE)
def test_a_student_validates_as_stock_nnunet_predicts(way, rng):
    plain, fast = made().eval(), made().eval()
    cpu_mode.set_mode(fast, way, in_training_only=True)
    data = torch.randn(1, 1, 16, 16, 16, generator=rng)
    torch.testing.assert_close(fast(data)[0], plain(data)[0], rtol=1e-4, atol=1e-4)
    assert (fast.train()(data)[0] - plain.train()(data)[0]).norm() <= 0.05 * plain(data)[0].norm()


@pytest.mark.parametrize("way", HERE)
def test_taps_see_the_features(way, rng):
    plain, fast = made(), made()
    taps = [Taps(one, {"encoder.-1": "encoder.2", "decoder.0": "decoder.0"}) for one in (plain, fast)]
    cpu_mode.set_mode(fast, way)
    for one, tap in zip((plain, fast), taps, strict=True):
        tap.recording = True
        one(torch.ones(1, 1, 16, 16, 16))
    expected, found = (tap.take() for tap in taps)
    for name, features in expected.items():
        assert found[name].shape == features.shape


def test_the_stock_way_changes_nothing():
    plain = made()
    cpu_mode.set_mode(plain, cpu_mode.STOCK)
    assert "forward" not in vars(plain)


def test_measuring_leaves_the_network_and_the_random_numbers_alone():
    measured = made()
    measured.register_buffer("seen", torch.zeros(()))
    before, state = deepcopy(measured.state_dict()), torch.get_rng_state()
    found = cpu_mode.measure(measured, (1, 1, 16, 16, 16), trained=True)
    assert set(found.ms) == set(cpu_mode.modes_here())
    assert found.mode in found.ms
    assert torch.equal(torch.get_rng_state(), state)
    assert "forward" not in vars(measured)
    assert all(p.grad is None for p in measured.parameters())
    for key, value in measured.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize(
    ("ms", "expected"),
    [
        ({"float32": 10, "bfloat16": 4, "bfloat16_channels_last": 5}, "bfloat16"),
        ({"float32": 10, "bfloat16": 5, "bfloat16_channels_last": 4}, "bfloat16_channels_last"),
        ({"float32": 10, "bfloat16": 9.8, "bfloat16_channels_last": 12}, "float32"),
    ],
)
def test_the_fastest_is_chosen_where_it_is_worth_it(ms, expected):
    with (
        mock.patch("nnunetv2_kd.networks.cpu_mode.modes_here", return_value=tuple(ms)),
        mock.patch("nnunetv2_kd.networks.cpu_mode._milliseconds", side_effect=list(ms.values()) * cpu_mode.ROUNDS),
    ):
        measured = made()
        line = str(cpu_mode.choose_mode(measured, "measure", (1, 1, 8, 8, 8)))
    assert line.startswith(f"{expected} (measured, forward: float32 10.0, bfloat16 ")
    assert ("forward" in vars(measured)) == (expected != "float32")


def test_without_the_instructions(monkeypatch):
    monkeypatch.setattr("nnunetv2_kd.networks.cpu_mode.cpu_has_bfloat16", lambda: False)
    assert cpu_mode.modes_here() == ("float32", "float32_channels_last")
    with pytest.raises(KDError, match=r"bfloat16 needs a processor with .* Choose another: measure, float32, float32_"):
        cpu_mode.choose_mode(made(), "bfloat16", (1, 1, 16, 16, 16))
    line = str(cpu_mode.choose_mode(made(), "measure", (1, 1, 16, 16, 16)))
    assert line.endswith("no bfloat16 instructions here)")
