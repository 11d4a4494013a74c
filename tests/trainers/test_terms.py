"""Every term in a training step, and the trained parts of terms."""

import csv
import json

import numpy as np
import pytest
import torch

from nnunetv2_kd.config import CombineOptions
from nnunetv2_kd.distillation.loss import DistillationLoss, compute_terms
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.methods import OWN_METHODS, Step
from nnunetv2_kd.methods.displacement import Displacement
from nnunetv2_kd.methods.region_affinity import own_blocks
from nnunetv2_kd.methods.registry import read_methods
from nnunetv2_kd.networks.taps import Taps
from nnunetv2_kd.regions.accelerator_sums import DenseSums, ScatteredSums
from nnunetv2_kd.regions.labels import Labels
from nnunetv2_kd.teachers.ensemble import EnsembleTeacher
from nnunetv2_kd.teachers.teacher import TeacherOutput
from nnunetv2_kd.trainers import nnUNetTrainerKD, nnUNetTrainerRegionGraphKD
from nnunetv2_kd.trainers.trained_parts import split_optimizer_state
from tests.small_networks import network
from tests.trainers.helpers import log_of, make_trainer, train

ALL_TERMS = {method.name: {} for method in OWN_METHODS}
WITH_ADAPTERS = {"fitnet": {"stages": ["encoder.1"]}, "recokd": {}, "displacement": {}}


def test_all_terms_together_train(here):
    trainer = make_trainer(nnUNetTrainerKD, here, terms=ALL_TERMS)
    log = train(trainer)
    assert "displacement: a batch of two has a single pair" in log
    for row in trainer._history.rows:
        assert all(np.isfinite(row[name]) for name in ALL_TERMS)
        assert all(row[name] != 0 for name in ALL_TERMS)


def test_all_terms_in_2d(here):
    terms = {name: term for name, term in ALL_TERMS.items() if name != "recokd"} | {"recokd": {"stages": ["encoder.0"]}}
    here.model("nnUNetTrainer").rename(here.model("nnUNetTrainerKeep"))
    teacher = make_trainer(
        type("nnUNetTrainerKDBaseline", (nnUNetTrainerKD,), {"distils": False}), here, "2d", student={"width": 1.0}
    )
    train(teacher)
    options = {"teacher": {"trainer": "nnUNetTrainerKDBaseline"}, "terms": terms}
    trainer = make_trainer(nnUNetTrainerKD, here, "2d", **options)
    train(trainer)
    assert all(np.isfinite(row[name]) for row in trainer._history.rows for name in ALL_TERMS)


def test_region_graph_trainer(here):
    assert "distillation: voxel_kl" in train(make_trainer(nnUNetTrainerRegionGraphKD, here))


def test_affinities_are_the_blocks_of_the_graph():
    edges = torch.arange(36.0).view(6, 6)
    blocks = own_blocks(edges, samples=2, regions=3)
    assert torch.equal(blocks[0], edges[:3, :3])
    assert torch.equal(blocks[1], edges[3:, 3:])


def test_terms_on_logits_need_some():
    loss = DistillationLoss(
        lambda output, _target: output[0].sum(),
        read_methods({"voxel_kl": {}}),
        Labels(3, False, None),
        Taps(torch.nn.Identity(), {}),
        torch.nn.ModuleDict(),
    )
    with loss.distilling(TeacherOutput([])), pytest.raises(KDError, match="No segmentation head of the teacher has"):
        loss([torch.zeros(1, 3, 4, 4)], [torch.zeros(1, 1, 4, 4)])


@pytest.mark.parametrize("way", [DenseSums, ScatteredSums])
@pytest.mark.parametrize("labels", [Labels(3, False, None), Labels(3, False, 3), Labels(3, True, None)])
def test_compiled_terms_are_the_same_and_compiled_once(way, labels, rng, monkeypatch):
    """With the GPU's ways of summing over regions, whatever regions a batch contains."""
    monkeypatch.setattr("nnunetv2_kd.regions.membership.grid_sums", way)
    names = ("voxel_kl", "lovasz", "importance_map", "region_affinity", "region_graph", "feature_filtering")
    stages = {"importance_map": {"stages": ["encoder.0"]}, "feature_filtering": {"stages": ["encoder.0", "encoder.1"]}}
    stages |= {name: {"stages": ["encoder.1"]} for name in ("region_affinity", "region_graph")}
    terms = read_methods({name: stages.get(name, {}) for name in names})
    torch._dynamo.reset()
    compiled = torch.compile(compute_terms, backend="eager", fullgraph=True)
    frames = []
    for classes in (4, 1, 2, 3):
        if labels.has_regions:
            target = (torch.rand((2, 3, 8, 8), generator=rng) < 0.3 * classes).float()
        else:
            target = torch.randint(0, classes, (2, 1, 8, 8), generator=rng).clamp(max=3 - (labels.ignore_label is None))
        given = [torch.randn(2, c, n, n, generator=rng) for c, n in ((3, 8), (3, 8), (4, 8), (6, 8), (5, 4), (7, 4))]
        found = []
        for function in (compute_terms, compiled):
            z_s, z_t, f_s, f_t, g_s, g_t = (x.clone().requires_grad_() for x in given)
            step = Step(
                labels,
                [z_s],
                [z_t],
                [target],
                [1.0],
                {"encoder.0": f_s, "encoder.1": g_s},
                {"encoder.0": f_t, "encoder.1": g_t},
            )
            values = function(terms, step)
            sum(values.values()).backward()
            found.append([*values.values(), z_s.grad, f_s.grad, g_s.grad])
        torch.testing.assert_close(*found)
        frames.append(torch._dynamo.utils.counters["frames"]["ok"])
    assert frames[-1] == frames[0]


def adapters_of(trainer):
    return {key: value.clone() for key, value in trainer.distillation.trained_parts.state_dict().items()}


def test_adapters_are_trained_with_the_networks_learning_rate(here):
    trainer = make_trainer(nnUNetTrainerKD, here, terms=WITH_ADAPTERS)
    trainer.on_train_start()
    before = adapters_of(trainer)
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    for _ in range(2):
        trainer.train_step(next(trainer.dataloader_train))
    after = adapters_of(trainer)
    changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"fitnet", "recokd", "displacement"}
    student, added = trainer.optimizer.param_groups
    assert student["lr"] == added["lr"]
    assert {id(p) for p in added["params"]} == {id(p) for p in trainer.distillation.trained_parts.parameters()}


def test_for_terms_on_the_encoder_the_teachers_decoder_does_not_run(here):
    trainer = make_trainer(nnUNetTrainerKD, here, terms=WITH_ADAPTERS)
    trainer.on_train_start()
    teacher, ran = trainer.teacher, []
    teacher.network.decoder.register_forward_hook(lambda *_: ran.append(True))
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    batch = next(trainer.dataloader_train)
    trainer.train_step(dict(batch))
    assert not ran
    values = []
    for logits in (True, False):
        with trainer.loss.distilling(teacher.run(batch["data"], logits)):
            values.append(trainer.loss(trainer.network(batch["data"]), batch["target"]).item())
    assert len(ran) == 1
    assert values[0] == values[1]


def test_adapters_are_resumed_and_not_exported(here):
    """Killed after two of four epochs and resumed, or run without interruption: the same adapters and
    the same student."""
    options = {"terms": WITH_ADAPTERS, "epochs": 4, "save_every": 1}
    whole = make_trainer(nnUNetTrainerKD, here, **options)
    train(whole)
    folder = here.model("nnUNetTrainerKD") / "fold_0"
    final = torch.load(folder / "checkpoint_final.pth", weights_only=False)
    assert "kd_training" not in final
    assert len(final["optimizer_state"]["param_groups"]) == 1
    of_student = list(range(len(list(whole.network.parameters()))))
    assert final["optimizer_state"]["param_groups"][0]["params"] == of_student
    assert set(final["optimizer_state"]["state"]) <= set(of_student)

    cut = make_trainer(nnUNetTrainerKD, here, **options)
    cut.on_train_start()
    for _ in range(2):
        one_epoch(cut)
    latest = folder / "checkpoint_latest.pth"
    assert "kd_training" in torch.load(latest, weights_only=False)

    resumed = make_trainer(nnUNetTrainerKD, here, **options)
    resumed.load_checkpoint(str(latest))
    train(resumed)
    for key, value in adapters_of(whole).items():
        torch.testing.assert_close(adapters_of(resumed)[key], value)
    for key, value in whole.network.state_dict().items():
        torch.testing.assert_close(resumed.network.state_dict()[key], value)


def one_epoch(trainer):
    """As nnU-Net's run_training does."""
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    outputs = [trainer.train_step(next(trainer.dataloader_train)) for _ in range(trainer.num_iterations_per_epoch)]
    trainer.on_train_epoch_end(outputs)
    with torch.no_grad():
        trainer.on_validation_epoch_start()
        outputs = [trainer.validation_step(next(trainer.dataloader_val))]
        trainer.on_validation_epoch_end(outputs)
    trainer.on_epoch_end()


def test_resuming_from_a_checkpoint_without_adapters_is_said(here):
    trainer = make_trainer(nnUNetTrainerKD, here, terms=WITH_ADAPTERS)
    train(trainer)
    again = make_trainer(nnUNetTrainerKD, here, terms=WITH_ADAPTERS, epochs=3)
    again.load_checkpoint(str(here.model("nnUNetTrainerKD") / "fold_0" / "checkpoint_final.pth"))
    again.on_train_start()
    assert "holds no adapters" in log_of(again)


def test_optimizer_state_without_ours_is_nnunets_own():
    network, adapter = torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    optimizer.add_param_group({"params": list(adapter.parameters())})
    adapter(network(torch.ones(1, 2))).sum().backward()
    optimizer.step()
    plain, added = split_optimizer_state(optimizer.state_dict(), 2)
    torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9).load_state_dict(plain)
    assert set(plain["state"]) == {0, 1}
    assert torch.equal(added[0]["momentum_buffer"], adapter.weight.grad)
    assert split_optimizer_state(plain, 0) == (plain, [])


def test_displacement_needs_two_samples():
    with pytest.raises(KDError, match=r"at least two; this batch size is 1.*--batch-size 4"):
        Displacement().check_batch(1)
    assert "single pair of samples" in Displacement().check_batch(2)[0]
    assert Displacement().check_batch(4) == []


def test_several_teachers_teach_logits_and_cosines_alone():
    few = read_methods({name: {} for name in ("voxel_kl", "region_affinity", "region_graph")})
    ensemble = EnsembleTeacher([], [1], CombineOptions(), Labels(3, False, None))
    with pytest.raises(
        KDError, match=r"importance_map, .*fitnet.* compares features, which cannot be mixed over several"
    ):
        ensemble.attach(network(), read_methods(ALL_TERMS))
    assert ensemble.attach(network(), few) == []


def test_a_tapped_stage_that_the_teacher_lacks(here):
    """The teacher's deepest stage corresponds to the student's last but one."""
    plans = json.loads(here.plans_file().read_text())
    kwargs = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    kwargs["strides"] = [[1, 1, 1], [1, 2, 1], *kwargs["strides"][2:]]
    plans |= {"plans_name": "nnUNetPlansOther", "kd_student": {"made_from": "nnUNetPlans", "width": {}}}
    here.plans_file("nnUNetPlansOther").write_text(json.dumps(plans))
    trainer = make_trainer(nnUNetTrainerKD, here, plans="nnUNetPlansOther", terms={"fitnet": {"stages": ["encoder.1"]}})
    with pytest.raises(KDError, match=r"teacher has no encoder stage of stride \(1, 2, 1\), which the student's encod"):
        trainer.on_train_start()


def test_progress_file_has_every_term(here):
    trainer = make_trainer(nnUNetTrainerKD, here, terms=WITH_ADAPTERS)
    train(trainer)
    with (here.model("nnUNetTrainerKD") / "fold_0" / "kd_progress.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2
    assert set(WITH_ADAPTERS) <= set(rows[0])
