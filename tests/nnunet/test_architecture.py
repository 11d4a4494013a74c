"""Plans name classes; those of strangers are neither imported nor called."""

import json
import sys

import numpy as np
import pytest

from nnunetv2_kd.cli.main import main
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.networks.cost import network_cost
from nnunetv2_kd.nnunet.architecture import check_architecture, is_allowed
from tests.scored_models import write
from tests.small_networks import DATASET_JSON, architecture, plans
from tests.untrained_models import DATASET, add_images, add_model, make_folders

WHERE = "plans.json"


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A module on the path that leaves a trace when it is imported, and another when its function is called."""
    folder = tmp_path / "path"
    folder.mkdir()
    (folder / "strangers.py").write_text(
        f"open({str(tmp_path / 'IMPORTED')!r}, 'w').close()\n"
        f"def f(*a, **k): open({str(tmp_path / 'CALLED')!r}, 'w').close()\n"
    )
    monkeypatch.syspath_prepend(folder)
    yield lambda: [name for name in ("IMPORTED", "CALLED") if (tmp_path / name).exists()]
    sys.modules.pop("strangers", None)


@pytest.mark.parametrize(
    "name",
    [
        "torch.nn.modules.conv.Conv3d",
        "torch.nn.LeakyReLU",
        "torch.nn.Dropout3d",
        "torch.nn.modules.instancenorm.InstanceNorm3d",
        "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "dynamic_network_architectures.building_blocks.residual.BasicBlockD",
    ],
)
def test_networks_and_operators_that_nnunet_names(name):
    assert is_allowed(name)


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "strangers.f",
        "torch.serialization.os.system",
        "torch.nn.modules.module.sys.exit",
        "torch.nn.functional.relu",
        "torch.hub.load",
        "torch.nn.parallel.distributed.os.system",
        "torch.nn",
        "torchevil.nn.X",
        "nnunetv2.paths.os.system",
        "dynamic_network_architectures.architectures.unet.np.load",
        "torch.nn.",
        "..torch.nn.ReLU",
        "",
    ],
)
def test_names_of_anything_else(name):
    assert not is_allowed(name)


@pytest.mark.parametrize("key", ["network_class_name", "norm_op", "conv_op"])
def test_a_stranger_is_named_and_not_imported(key, stranger):
    arch = architecture()
    (arch if key == "network_class_name" else arch["arch_kwargs"])[key] = "strangers.f"
    with pytest.raises(KDError, match=rf"{key}: strangers\.f(.|\n)*--trust for a command") as refusal:
        check_architecture(arch, WHERE)
    assert "names code that was not run" in str(refusal.value)
    assert stranger() == []


def test_a_class_that_is_not_there_is_reported():
    arch = architecture() | {"network_class_name": "dynamic_network_architectures.architectures.unet.NoSuchNet"}
    with pytest.raises(KDError, match="NoSuchNet: this network or operator is not installed"):
        check_architecture(arch, WHERE)


def test_a_network_that_has_moved_within_its_package_is_found_as_nnunet_finds_it():
    moved = "dynamic_network_architectures.architectures.residual_unet.ResidualEncoderUNet"
    check_architecture(architecture(residual=True) | {"network_class_name": moved}, WHERE)


def test_trust_allows_everything(stranger, monkeypatch):
    arch = architecture() | {"network_class_name": "strangers.f"}
    check_architecture(arch, WHERE, trust=True)
    monkeypatch.setenv("nnUNet_kd_trust", "1")
    check_architecture(arch, WHERE)
    assert stranger() == []  # allowed, but it is the building that imports


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network_class_name": 3}, "network_class_name: found 3"),
        ({"arch_kwargs": []}, r"arch_kwargs: found \[\]"),
        ({"_kw_requires_import": ["nothing"]}, "nothing is not in arch_kwargs"),
        ({"_kw_requires_import": ["n_stages"]}, "n_stages: expected the name of a class, found 3"),
    ],
)
def test_what_is_no_architecture(change, message):
    with pytest.raises(KDError, match=message):
        check_architecture(architecture() | change, WHERE)


@pytest.mark.parametrize(("key", "value"), [("features_per_stage", [10**9, 1, 1]), ("n_stages", 10**6), ("x y", 1)])
def test_numbers_and_names_that_no_network_has(key, value):
    arch = architecture()
    arch["arch_kwargs"][key] = value
    with pytest.raises(KDError, match="not as nnU-Net writes it"):
        check_architecture(arch, WHERE)


def test_the_cost_of_strange_plans_is_not_known(stranger):
    strange = plans()
    strange["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["nonlin"] = "strangers.f"
    with pytest.raises(KDError, match=r"nonlin: strangers\.f"):
        network_cost(strange, "3d_fullres", DATASET_JSON)
    assert stranger() == []


@pytest.fixture
def hostile(tmp_path, monkeypatch, stranger):
    """A model whose plans name the stranger's function, images, and all folders of nnU-Net."""
    make_folders(tmp_path, monkeypatch)
    monkeypatch.setenv("nnUNet_kd_cache", str(tmp_path / "cache"))
    model = add_model(tmp_path / "results", "nnUNetTrainer")
    content = json.loads((model / "plans.json").read_text())
    content["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "strangers.f"
    (model / "plans.json").write_text(json.dumps(content))
    for case in add_images(tmp_path / "images"):
        write(tmp_path / "labels" / f"{case}.nii.gz", np.zeros((18, 16, 16), np.uint8), (1.0, 1.0, 1.0))
    (tmp_path / "raw" / DATASET).mkdir()
    (tmp_path / "raw" / DATASET / "dataset.json").write_text(json.dumps(DATASET_JSON))
    return tmp_path


COMMANDS = {
    "predict": "predict -m MODEL -i IMAGES -o OUT -f 0 -device cpu -npp 0 -nps 0",
    "benchmark": "benchmark -m MODEL -i IMAGES -device cpu --cases 1 --repeats 1",
    "export": "export -m MODEL -o OUT -i IMAGES --format nnunet",
    "leaderboard": "leaderboard -d 7 -i IMAGES -gt LABELS -o OUT -device cpu",
    "unlabelled": "unlabelled -i IMAGES -o 107 --teacher_folder MODEL -device cpu",
    "status": "status -d 7",
    "doctor": "doctor",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_what_plans_name(hostile, stranger, command, capsys):
    model = hostile / "results" / DATASET / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    places = {"MODEL": model, "IMAGES": hostile / "images", "LABELS": hostile / "labels", "OUT": hostile / "out"}
    status = main([str(places.get(word, word)) for word in COMMANDS[command].split()])
    printed = capsys.readouterr()
    assert stranger() == []
    if command not in ("status", "doctor"):
        assert "strangers.f" in printed.err + printed.out or "do not fit" in printed.err
        assert status == (0 if command == "leaderboard" else 1)  # which names the model as missing


def test_trusted_plans_are_imported(hostile, stranger, capsys):
    """This shows that the tests above would notice an import."""
    model = hostile / "results" / DATASET / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    arguments = (
        f"predict -m {model} -i {hostile / 'images'} -o {hostile / 'out'} -f 0 -device cpu -npp 0 -nps 0 --trust"
    )
    assert main(arguments.split()) == 1  # what the function returns is no network
    assert stranger() == ["IMPORTED", "CALLED"]
    assert "the network of 3d_fullres in the plans" in capsys.readouterr().err
