"""The running mean of the weights: its formula, and where it is used."""

import copy

import pytest
import torch
from torch import nn
from torch.serialization import get_unsafe_globals_in_checkpoint

from nnunetv2_kd.trainers import nnUNetTrainerKD, nnUNetTrainerKDBaseline
from nnunetv2_kd.trainers.ema import WeightAverage
from tests.trainers.helpers import log_of, make_trainer, train


def trained(steps, decay, average=None):
    """A network, its mean, and the weights after every step."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    mean = WeightAverage(network, decay)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    mean.follow(optimizer)
    mean.train()
    after = []
    for _ in range(steps):
        optimizer.zero_grad()
        network(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
        after.append(copy.deepcopy(network.state_dict()))
    return network, mean, after


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_mean_of_weights_and_buffers(decay):
    network, mean, after = trained(12, decay)
    expected = after[0]
    for step, weights in enumerate(after[1:], start=1):
        now = min(decay, (1 + step) / (10 + step))
        for key, value in weights.items():
            expected[key] = now * expected[key] + (1 - now) * value
    del expected["1.num_batches_tracked"]  # a whole number that nothing reads
    mean.evaluate()
    for key, value in expected.items():
        torch.testing.assert_close(network.state_dict()[key], value)
    kept = mean.state()["weights"]
    for key, value in after[-1].items():
        torch.testing.assert_close(kept[key], value)
    mean.evaluate()  # once is enough
    torch.testing.assert_close(network.state_dict()["0.weight"], expected["0.weight"])
    mean.train()
    torch.testing.assert_close(network.state_dict()["0.weight"], after[-1]["0.weight"])


def test_validated_saved_and_predicted_is_the_mean(here):
    trainer = make_trainer(nnUNetTrainerKDBaseline, here, save_every=1, epochs=2, ema=0.9, optimizer="adamw")
    trained, validated, checkpoints = [], [], []
    plain_step, plain_validation, plain_end = trainer.train_step, trainer.validation_step, trainer.on_epoch_end

    def train_step(batch):
        result = plain_step(batch)
        trained.append(copy.deepcopy(trainer.network.state_dict()))
        return result

    def validation_step(batch):
        validated.append(copy.deepcopy(trainer.network.state_dict()))
        return plain_validation(batch)

    def on_epoch_end():
        plain_end()
        latest = f"{trainer.output_folder}/checkpoint_latest.pth"
        checkpoints.append(torch.load(latest, weights_only=False))

    trainer.train_step, trainer.validation_step, trainer.on_epoch_end = train_step, validation_step, on_epoch_end
    train(trainer)
    file = f"{trainer.output_folder}/checkpoint_final.pth"
    final = torch.load(file, weights_only=False)
    latest = checkpoints[0]  # of the first epoch of three steps; none is written after the last
    for key, mean in trainer.network.state_dict().items():
        assert torch.equal(final["network_weights"][key], mean)
        assert torch.equal(validated[1][key], mean)
        assert torch.equal(validated[0][key], latest["network_weights"][key])
        assert torch.equal(trained[2][key], latest["kd_training"]["ema"]["weights"][key])
    assert any(not torch.equal(trained[2][key], value) for key, value in validated[0].items())
    assert "kd_training" not in final
    assert final["trainer_name"] == "nnUNetTrainer"
    assert all(name.startswith("numpy.") for name in get_unsafe_globals_in_checkpoint(file))  # those of stock nnU-Net


def test_from_a_checkpoint_without_the_trained_weights(here):
    options = {"ema": 0.9, "epochs": 1}
    first = make_trainer(nnUNetTrainerKD, here, **options)
    train(first)
    resumed = make_trainer(nnUNetTrainerKD, here, **{**options, "epochs": 2})
    resumed.load_checkpoint(f"{first.output_folder}/checkpoint_final.pth")
    resumed.on_train_start()
    assert "the training goes on from the mean" in log_of(resumed)


def test_without_it_nothing_is_kept(here):
    trainer = make_trainer(nnUNetTrainerKDBaseline, here)
    trainer.on_train_start()
    assert trainer._average is None
    assert trainer._training_state() == {}
