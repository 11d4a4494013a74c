"""One training step of nnU-Net's against a float64 reference: total loss, and the student's gradient.

The reference runs both networks in float64 and computes segmentation + weight * factor * term with the formulas of
tests/methods; the gradient is compared along a random direction of the weights, by central differences.
"""

import copy

import numpy as np
import pytest
import torch

from nnunetv2_kd.methods import OWN_METHODS
from nnunetv2_kd.networks.stages import stage_modules
from nnunetv2_kd.trainers import nnUNetTrainerKD
from tests.methods import reference, reference_rivals
from tests.trainers.helpers import make_trainer

WEIGHT, FACTOR, STAGE = 0.7, 0.5, "encoder.1"
ON_LOGITS = {
    "voxel_kl": ({"temperature": 2.0}, lambda z_s, z_t, y: reference.voxel_kl(z_s, z_t, None, 2.0, False)),
    "region_kl": (
        {"temperature": 2.0, "membership": "labels"},
        lambda z_s, z_t, y: reference.region_kl(z_s, z_t, one_hot(y), 2.0, False),
    ),
    "channel_wise": ({"temperature": 3.0}, lambda z_s, z_t, y: reference_rivals.channel_wise(z_s, z_t, ones(y), 3.0)),
    "class_affinity": ({}, lambda z_s, z_t, y: reference_rivals.class_affinity(z_s, z_t, ones(y), False)),
    "soft_dice": ({}, lambda z_s, z_t, y: reference_rivals.soft_dice(z_s, z_t, ones(y), False)),
}
ON_FEATURES = {
    "importance_map": ({}, lambda f_s, f_t, m: reference.importance_map_loss(f_s, f_t)),
    "region_affinity": ({}, lambda f_s, f_t, m: reference.region_affinity(f_s, f_t, m, m)),
    "region_graph": ({"hops": 2}, lambda f_s, f_t, m: reference_rivals.region_graph_loss(f_s, f_t, m, m, 2)),
    "feature_filtering": ({"gamma": 2.0}, lambda f_s, f_t, m: reference_rivals.feature_filtering(f_s, f_t, m, m, 2.0)),
    "intra_class_variation": ({}, lambda f_s, f_t, m: reference_rivals.intra_class_variation(f_s, f_t, m, m)),
}
# these are compared in float32 against their references with random parameters and inputs, see tests/methods
REFERENCED_ELSEWHERE = {"lovasz", "dist", "fitnet", "recokd", "displacement"}


def test_every_method_is_compared_somewhere():
    assert {m.name for m in OWN_METHODS} == {*ON_LOGITS, *ON_FEATURES, *REFERENCED_ELSEWHERE}


def one_hot(y):
    return np.stack([y[:, 0] == k for k in range(3)], axis=1).astype(np.float64)


def ones(y):
    return np.ones_like(y, dtype=bool)


def outputs(network, data):
    """Logits of every head and the features of a stage, in float64 as NumPy arrays."""
    kept = []
    hook = stage_modules(network)[STAGE][0].register_forward_hook(lambda *call: kept.append(call[2]))
    with torch.no_grad():
        heads = network(data)
    hook.remove()
    return [z.numpy() for z in heads], kept[0].numpy()


@pytest.mark.parametrize("name", [*ON_LOGITS, *ON_FEATURES])
def test_a_step_is_the_reference(name, here):
    options, formula = (ON_LOGITS | ON_FEATURES)[name]
    stages = {"stages": [STAGE]} if name in ON_FEATURES else {}
    trainer = make_trainer(
        nnUNetTrainerKD,
        here,
        terms={name: {"weight": WEIGHT, **options, **stages}},
        schedule={"warmup": 1.0},
        optimizer="nnunet",
        epochs=2,
    )
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    trainer._iteration = 3  # of 3, in the first of two epochs: half of the warm-up
    batch = next(trainer.dataloader_train)
    student, teacher = (copy.deepcopy(n).double() for n in (trainer.network, trainer.teacher.network))
    segmentation = trainer.loss.segmentation
    data = batch["data"].double()
    targets = [y.numpy().astype(np.int64) for y in batch["target"]]
    logits_t, features_t = outputs(teacher.eval(), data)

    def total(network):
        logits_s, features_s = outputs(network, data)
        if name in ON_LOGITS:
            heads = zip(segmentation.weight_factors, logits_s, logits_t, targets, strict=True)
            term = sum(w * formula(z_s, z_t, y) for w, z_s, z_t, y in heads if w != 0)
        else:
            half = reference.area_average(one_hot(targets[0]), targets[0].shape[2] // features_s.shape[2])
            term = formula(features_s, features_t, half)
        own = float(segmentation([torch.from_numpy(z) for z in logits_s], batch["target"]))
        return own + WEIGHT * FACTOR * term

    clipped = torch.nn.utils.clip_grad_norm_
    torch.nn.utils.clip_grad_norm_ = lambda *_, **__: None  # the gradient as it is, and not as long as nnU-Net allows
    try:
        loss = float(trainer.train_step(dict(batch))["loss"])
    finally:
        torch.nn.utils.clip_grad_norm_ = clipped
    assert loss == pytest.approx(total(student), rel=1e-3)

    generator = torch.Generator().manual_seed(0)
    slope = 0.0
    moved = [copy.deepcopy(student) for _ in range(2)]
    for mine, up, down in zip(trainer.network.parameters(), *(n.parameters() for n in moved), strict=True):
        direction = torch.randn(mine.shape, generator=generator, dtype=torch.float64)
        if mine.grad is not None:
            slope += float((mine.grad.double() * direction).sum())
        up.data += 1e-5 * direction
        down.data -= 1e-5 * direction
    assert slope == pytest.approx((total(moved[0]) - total(moved[1])) / 2e-5, rel=0.02, abs=1e-3)
