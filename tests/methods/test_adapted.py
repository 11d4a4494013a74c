"""Terms with parameters of their own: FitNets, ReCo-KD, and what DPRD has in common with them."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunetv2_kd.methods.displacement import DisplacementLoss
from nnunetv2_kd.methods.fitnet import FitNetLoss
from nnunetv2_kd.methods.recokd import GlobalContext, ReCoKDLoss, attention, region_masks
from nnunetv2_kd.methods.recokd_sums import sizes
from nnunetv2_kd.regions.membership import label_regions, overlapping_regions
from tests.methods import reference_rivals
from tests.methods.given import regions_of
from tests.methods.reference import area_average

SPATIAL = [(8, 4), (4, 8, 4)]
STUDENT, TEACHER = {"encoder.0": 2, "decoder.1": 3}, {"encoder.0": 3, "decoder.1": 5}


def term_of(kind, dims, student=STUDENT, teacher=TEACHER):
    torch.manual_seed(0)
    return kind(student, teacher, dims)


def call(term, f_s, f_t, m):
    return term(f_s, f_t) if isinstance(term, FitNetLoss) else term(f_s, f_t, m)


def features(channels, spatial, rng, batch=3):
    """The second stage at half resolution."""
    halves = [1, 2]
    return {
        stage: torch.randn((batch, c, *(n // half for n in spatial)), generator=rng)
        for half, (stage, c) in zip(halves, channels.items(), strict=True)
    }


def labels(spatial, rng, batch=3):
    """The last class is absent everywhere; the last sample has background only."""
    y = torch.randint(0, 3, (batch, 1, *spatial), generator=rng)
    y[-1] = 0
    return label_regions(y, 4)


def adapted(term, stage, f):
    weight = term.adapters[stage.replace(".", "_")].weight.detach().double().numpy()
    return np.einsum("dc,bc...->bd...", weight.reshape(weight.shape[:2]), f.double().numpy())


def flat(x):
    return np.asarray(x, dtype=np.float64).reshape(*x.shape[:2], -1)


@pytest.mark.parametrize("spatial", SPATIAL)
def test_fitnet_is_the_reference(spatial, rng):
    term = term_of(FitNetLoss, len(spatial))
    f_s, f_t = features(STUDENT, spatial, rng), features(TEACHER, spatial, rng)
    expected = sum(((adapted(term, s, f_s[s]) - f_t[s].numpy()) ** 2).mean() for s in STUDENT)
    assert float(term(f_s, f_t).detach()) == pytest.approx(expected, rel=1e-4)


def recokd_reference(term, f_s, f_t, m):
    expected = 0.0
    for k, stage in enumerate(STUDENT):
        s, t = flat(adapted(term, stage, f_s[stage])), flat(f_t[stage])
        regions = flat(area_average(m.dense().numpy(), k + 1))
        for b in range(len(s)):
            expected += 2 ** (-1.2 * k) / len(s) * reference_rivals.sard(s[b], t[b], regions[b])
            contexts = [
                reference_rivals.global_context(f, *parameters(blocks[stage.replace(".", "_")]))
                for f, blocks in ((s[b], term.context_s), (t[b], term.context_t))
            ]
            expected += 2 ** (-1.2 * k) / len(s) * ((contexts[0] - contexts[1]) ** 2).mean()
    return expected


def recokd_that_learned(spatial, rng):
    """ReCo-KD with blocks that are not the identity, and their inputs; wide enough, because a layer norm over two
    channels is constant."""
    teacher = {"encoder.0": 6, "decoder.1": 8}
    term = term_of(ReCoKDLoss, len(spatial), teacher=teacher)
    for parameter in term.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=rng)
    for block in (*term.context_s.values(), *term.context_t.values()):
        torch.nn.init.constant_(block.transform[1].bias, 2)  # behind it is a ReLU, which would let nothing through
    return term, features(STUDENT, spatial, rng), features(teacher, spatial, rng), labels(spatial, rng)


@pytest.mark.parametrize("spatial", SPATIAL)
def test_recokd_is_the_reference(spatial, rng):
    term, *inputs = recokd_that_learned(spatial, rng)
    assert float(term(*inputs).detach()) == pytest.approx(recokd_reference(term, *inputs), rel=1e-3)


@pytest.mark.parametrize("spatial", SPATIAL)
def test_recokd_has_the_references_gradient(spatial, rng):
    """Compared along a random direction of every input and parameter with central differences in float64."""
    term, f_s, f_t, m = recokd_that_learned(spatial, rng)
    for f in f_s.values():
        f.requires_grad_()
    term(f_s, f_t, m).backward()
    exact, f_exact = copy.deepcopy(term).double(), {stage: f.detach().double() for stage, f in f_s.items()}
    moved = {**f_exact, **{name: p.data for name, p in exact.named_parameters()}}
    gradients = {name: x.grad for name, x in (*f_s.items(), *term.named_parameters())}
    for name, x in moved.items():
        direction = torch.randn(x.shape, generator=rng, dtype=torch.float64)
        around = []
        for step in (1e-5, -2e-5):
            x += step * direction
            around.append(recokd_reference(exact, f_exact, f_t, m))
        x += 1e-5 * direction
        expected = (around[0] - around[1]) / 2e-5
        assert float((gradients[name] * direction).sum()) == pytest.approx(expected, rel=2e-3, abs=1e-4), name
    silent = {name for name, gradient in gradients.items() if gradient.abs().max() < 1e-3}
    assert all(name.endswith("score.bias") for name in silent)  # a softmax does not change with it


def parameters(block):
    def of(layer):
        return layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()

    return of(block.score), [of(block.transform[i]) for i in (0, 1, 3)]


def test_attention_closed_form():
    """Two voxels, one ignored. Channels of mean size 0.5 log 3 and 0: shares 3/4 and 1/4."""
    f = torch.tensor([[[0.5 * np.log(3), 9.0], [0.0, 9.0]]], dtype=torch.float32)
    inside = torch.tensor([[1.0, 0.0]])
    spatial, channel = attention(*sizes(f, inside), inside)
    assert spatial.tolist() == [[1, 0]]
    assert channel[0].tolist() == pytest.approx([1.5, 0.5])


def test_region_masks_and_overlapping_regions():
    targets = torch.tensor([[1, 1, 1, 1, 0], [0, 0, 1, 0, 0]]).view(1, 2, 1, 5)
    foreground, background = region_masks(overlapping_regions(targets), (1, 5))
    assert foreground[0].tolist() == [0.25, 0.25, 1.25, 0.25, 0]
    assert background[0].tolist() == [0, 0, 0, 0, 1]


def test_recokd_counts_absent_foreground_as_zero(rng):
    """All voxels are background: the background's part, the attentions' part and the features' part remain."""
    term = term_of(ReCoKDLoss, 2, {"a": 2}, {"a": 2})
    torch.nn.init.dirac_(term.adapters["a"].weight)
    f_s, f_t = torch.randn(1, 2, 1, 6, generator=rng), torch.randn(1, 2, 1, 6, generator=rng)
    m = torch.zeros(1, 3, 1, 6)
    m[:, 0] = 1
    s, t = flat(f_s)[0], flat(f_t)[0]
    expected = reference_rivals.sard(s, t, m[0, :, 0].numpy()) + ((s - t) ** 2).mean()
    assert float(term({"a": f_s}, {"a": f_t}, regions_of(m)).detach()) == pytest.approx(expected, rel=1e-4)


def test_global_context_starts_by_adding_nothing_and_can_leave_that(rng):
    block, f = GlobalContext(4), torch.randn(2, 4, 6, generator=rng)
    added = block(f, torch.ones(2, 6))
    assert torch.equal(added, torch.zeros(2, 4))
    (added - 1).square().sum().backward()
    assert block.transform[3].weight.grad.abs().sum() > 0


def test_no_voxel_makes_no_context(rng):
    block, nothing = GlobalContext(4), torch.zeros(1, 6)
    torch.nn.init.normal_(block.transform[3].weight, generator=rng)
    f, other = torch.randn(1, 4, 6, generator=rng), torch.randn(1, 4, 6, generator=rng)
    torch.testing.assert_close(block(f, nothing), block(other, nothing))


def test_global_context_behind_a_convolution(rng):
    block, f, weight = GlobalContext(4), torch.randn(2, 3, 6, generator=rng), torch.randn(4, 3, generator=rng)
    torch.nn.init.normal_(block.transform[3].weight, generator=rng)
    inside = torch.tensor([[1.0, 1, 1, 0, 0, 1], [1, 0, 0, 0, 0, 1]])
    torch.testing.assert_close(block(f, inside, weight), block(weight @ f, inside))


@pytest.mark.parametrize("kind", [FitNetLoss, ReCoKDLoss, DisplacementLoss])
def test_zero_when_identical(kind, rng):
    term = term_of(kind, 2, TEACHER, TEACHER)
    for adapter in term.adapters.values():
        torch.nn.init.dirac_(adapter.weight)
    f = features(TEACHER, (8, 4), rng)
    clone = {stage: x.clone() for stage, x in f.items()}
    assert float(call(term, f, clone, labels((8, 4), rng)).detach()) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("kind", [FitNetLoss, ReCoKDLoss, DisplacementLoss])
def test_gradient_to_the_student_and_the_parameters(kind, rng):
    term = term_of(kind, 2)
    f_s, f_t = features(STUDENT, (8, 4), rng), features(TEACHER, (8, 4), rng)
    for f in (*f_s.values(), *f_t.values()):
        f.requires_grad_()
    call(term, f_s, f_t, labels((8, 4), rng)).backward()
    assert all(f.grad.abs().sum() > 0 for f in f_s.values())
    assert all(f.grad is None for f in f_t.values())
    # the blocks' last layer starts at 0, so the layers before it learn from the second step on
    learning = [p for name, p in term.named_parameters() if not name.startswith("context") or "transform.3" in name]
    assert all(p.grad.abs().sum() > 0 for p in learning)
    assert all(torch.isfinite(p.grad).all() for p in term.parameters())


@pytest.mark.parametrize("kind", [ReCoKDLoss, DisplacementLoss])
def test_ignored_voxels_do_not_count(kind, rng):
    """Complete cells of the coarser stage's grid are ignored."""
    term = term_of(kind, 2)
    f_s, f_t, m = features(STUDENT, (8, 4), rng), features(TEACHER, (8, 4), rng), labels((8, 4), rng)
    m.codes[:, :2] = len(m.table) - 1
    expected = float(call(term, f_s, f_t, m).detach())
    for half, stage in enumerate(STUDENT, start=1):
        f_s[stage][:, :, : 2 // half] += 7
        f_t[stage][:, :, : 2 // half] *= -3
    assert float(call(term, f_s, f_t, m).detach()) == pytest.approx(expected, rel=1e-4)
    assert float(call(term, f_s, f_t, labels((8, 4), rng)).detach()) != pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("kind", [ReCoKDLoss, DisplacementLoss])
def test_all_ignored_is_zero_and_not_nan(kind, rng):
    term = term_of(kind, 2)
    f_s = {stage: f.requires_grad_() for stage, f in features(STUDENT, (8, 4), rng).items()}
    loss = call(term, f_s, features(TEACHER, (8, 4), rng), regions_of(torch.zeros(3, 4, 8, 4)))
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(f.grad.abs().sum() == 0 for f in f_s.values())
    assert all(torch.isfinite(p.grad).all() for p in term.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", [FitNetLoss, ReCoKDLoss, DisplacementLoss])
def test_dead_students_have_finite_gradients(kind, rng):
    term = term_of(kind, 2)
    f_s = {stage: torch.zeros_like(f, requires_grad=True) for stage, f in features(STUDENT, (8, 4), rng).items()}
    call(term, f_s, features(TEACHER, (8, 4), rng), labels((8, 4), rng)).backward()
    assert all(f.grad.abs().max() < 1e3 for f in f_s.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [FitNetLoss, ReCoKDLoss, DisplacementLoss])
def test_half_precision(kind, dtype, rng):
    term, m = term_of(kind, 2), labels((8, 4), rng)
    f_s, f_t = ({k: f.to(dtype) for k, f in features(c, (8, 4), rng).items()} for c in (STUDENT, TEACHER))
    half = {k: f.clone().requires_grad_() for k, f in f_s.items()}
    full = {k: f.float().requires_grad_() for k, f in f_s.items()}
    loss, expected = call(term, half, f_t, m), call(term, full, {k: f.float() for k, f in f_t.items()}, m)
    loss.backward()
    expected.backward()
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    for stage in STUDENT:
        np.testing.assert_allclose(half[stage].grad.float(), full[stage].grad, rtol=0.02, atol=1e-4)


@pytest.mark.parametrize("kind", [FitNetLoss, ReCoKDLoss, DisplacementLoss])
def test_parameters_survive_a_state_dict(kind, rng):
    term, other = term_of(kind, 2), kind(STUDENT, TEACHER, 2)
    f_s, f_t, m = features(STUDENT, (8, 4), rng), features(TEACHER, (8, 4), rng), labels((8, 4), rng)
    assert not torch.equal(call(term, f_s, f_t, m), call(other, f_s, f_t, m))
    other.load_state_dict(term.state_dict())
    assert torch.equal(call(term, f_s, f_t, m), call(other, f_s, f_t, m))


@pytest.mark.parametrize("kind", [FitNetLoss, ReCoKDLoss, DisplacementLoss])
def test_what_cannot_be_is_refused(kind):
    with pytest.raises(ValueError, match=r"\['encoder.0'\] and \['encoder.1'\]"):
        kind({"encoder.0": 2}, {"encoder.1": 2}, 2)
    with pytest.raises(ValueError, match="2 or 3 spatial dimensions, got 4"):
        kind({"encoder.0": 2}, {"encoder.0": 3}, 4)
    term, f = kind({"a": 2}, {"a": 3}, 2), torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"a .*\(1, \d, 4, 4\) and \(2, 3, 4, 4\)"):
        call(term, {"a": f[:1, :2]}, {"a": f}, overlapping_regions(torch.ones(2, 1, 4, 4)))
    if kind is not FitNetLoss:
        with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\) and \(1, \d, 4, 4\)"):
            term({"a": f[:, :2]}, {"a": f}, overlapping_regions(torch.ones(1, 1, 4, 4)))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3))
def test_never_negative(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    f_s, f_t = features(STUDENT, (4, 4), generator), features(TEACHER, (4, 4), generator)
    f_s = {stage: scale * f for stage, f in f_s.items()}
    for kind in (FitNetLoss, ReCoKDLoss, DisplacementLoss):
        loss = float(call(term_of(kind, 2), f_s, f_t, labels((4, 4), generator)).detach())
        assert 0 <= loss < float("inf")
