import pytest
import torch
from torch import nn

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.networks.build import plain_network
from nnunetv2_kd.networks.stages import match_stages, stage_modules
from nnunetv2_kd.networks.taps import Taps
from tests.small_networks import network


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
def test_stages_count_from_full_resolution(residual, dims):
    net = network(dims=dims, residual=residual)
    strides = {name: stride for name, (_, stride) in stage_modules(net).items()}
    assert strides["encoder.0"] == strides["decoder.0"] == (1,) * dims
    assert strides["encoder.2"] == (4,) * dims
    assert "decoder.2" not in strides
    names = list(strides)
    taps = Taps(net, {name: name for name in names})
    taps.recording = True
    net(torch.zeros(1, 1, *[16] * dims))
    for name, features in taps.take().items():
        assert features.shape[2:] == tuple(16 // s for s in strides[name])


def test_stages_are_matched_by_stride_and_not_by_index():
    student = network(features=(4, 8), strides=[[1, 1, 1], [4, 4, 4]])
    teacher = network(features=(8, 16, 32), residual=True)
    assert match_stages(["encoder.0", "encoder.-1", "decoder.0"], student, teacher) == {
        "encoder.0": "encoder.0",
        "encoder.1": "encoder.2",
        "decoder.0": "decoder.0",
    }


def test_a_stride_that_the_teacher_lacks():
    student = network(strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2]])
    with pytest.raises(KDError, match=r"no encoder stage of stride \(1, 2, 2\).*encoder.1 \(2, 2, 2\)"):
        match_stages(["encoder.1"], student, network())


@pytest.mark.parametrize("stage", ["encoder.3", "decoder.2", "encoder.-4"])
def test_a_stage_that_the_student_lacks(stage):
    with pytest.raises(KDError, match=f"no stage '{stage}'.*encoder.0, encoder.1, encoder.2, decoder.0, decoder.1"):
        match_stages([stage], network(), network())


def test_a_network_without_stages():
    with pytest.raises(KDError, match="Linear has none"):
        stage_modules(nn.Linear(1, 1))


def test_nothing_is_kept_unless_recording():
    net = network()
    taps = Taps(net, {"decoder.0": "decoder.0"})
    net(torch.zeros(1, 1, 8, 8, 8))
    assert taps.take() == {}
    taps.recording = True
    net(torch.zeros(1, 1, 8, 8, 8))
    assert list(taps.take()) == ["decoder.0"]
    assert taps.take() == {}


def test_taps_do_not_change_the_checkpoint():
    net = network()
    before = list(net.state_dict())
    Taps(net, {"encoder.0": "encoder.0"})
    assert list(net.state_dict()) == before


@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_taps_see_through_torch_compile(backend):
    """Same features and same gradients with and without compilation, and no recompilation at every step."""
    torch.manual_seed(0)
    net = network(features=(2, 4), dims=2)
    compiled = torch.compile(net, backend=backend)
    taps = Taps(plain_network(compiled), {"low": "encoder.1", "high": "decoder.0"})
    taps.recording = True
    data = torch.randn(2, 1, 8, 8)

    def gradients(model):
        net.zero_grad()
        output = model(data)
        features = taps.take()
        loss = output[0].square().mean() + sum(f.square().mean() for f in features.values())
        loss.backward()
        return features, [p.grad.clone() for p in net.parameters() if p.grad is not None]

    torch._dynamo.reset()
    plain, plain_gradients = gradients(net)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            traced, traced_gradients = gradients(compiled)
    assert list(traced) == list(plain)
    for name in plain:
        torch.testing.assert_close(traced[name], plain[name])
    assert len(plain_gradients) == len(traced_gradients)
    for one, other in zip(plain_gradients, traced_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_recording_can_be_switched_after_compilation():
    net = network(features=(2, 4), dims=2)
    compiled = torch.compile(net, backend="eager")
    taps = Taps(net, {"decoder.0": "decoder.0"})
    data = torch.randn(1, 1, 8, 8)
    compiled(data)
    assert taps.take() == {}
    taps.recording = True
    compiled(data)
    assert list(taps.take()) == ["decoder.0"]
    taps.recording = False
    compiled(data)
    assert taps.take() == {}
