import json

import pytest

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.nnunet.model_files import (
    is_plain_name,
    printable,
    read_dataset_json,
    read_model_files,
    refuse_unexpected_content,
)
from tests.small_networks import DATASET_JSON, plans
from tests.untrained_models import predicting_plans


@pytest.fixture
def model(tmp_path):
    def write(plans_content=None, dataset_json=None):
        for name, content in (("plans.json", plans_content), ("dataset.json", dataset_json)):
            (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return tmp_path

    return write


def test_what_nnunet_writes_is_read(model):
    good = predicting_plans("nnUNetPlans", (4, 8))
    assert read_model_files(model(good, DATASET_JSON)) == (good, DATASET_JSON)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "expected keys with values, found list"),
        ("{}", "plans_name: expected a name without path, which is missing"),
        ("null", "found NoneType"),
        ('"plans"', "found str"),
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ('{"a": ' + "9" * 6000 + "}", "is not valid JSON"),
    ],
)
def test_plans_that_are_none(model, content, message):
    with pytest.raises(KDError, match=message) as refusal:
        read_model_files(model(content, DATASET_JSON))
    assert "plans.json" in str(refusal.value)
    assert "Copy the model's folder again" in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plans_name": "../../x"}, "plans_name"),
        ({"dataset_name": "a/b"}, "dataset_name"),
        ({"configurations": {"3d_fullres": []}}, r"configurations.3d_fullres: expected keys"),
        ({"image_reader_writer": "os"}, "image_reader_writer: os is none of nnU-Net's"),
        ({"image_reader_writer": "np"}, "image_reader_writer: np is none of nnU-Net's"),
        ({"label_manager": "torch"}, "label_manager: torch is none"),
    ],
)
def test_plans_that_name_what_nnunet_has_not(model, change, message):
    with pytest.raises(KDError, match=message):
        read_model_files(model(plans() | change, DATASET_JSON))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": [0, 1, 1]}, "patch_size"),
        ({"spacing": "near"}, "spacing"),
        ({"batch_size": -1}, "batch_size"),
        ({"data_identifier": "../raw"}, "data_identifier"),
        ({"preprocessor_name": "load_pickle"}, "preprocessor_name: load_pickle is none"),
        ({"resampling_fn_data": "deepcopy"}, "resampling_fn_data: deepcopy is none"),
        ({"normalization_schemes": ["ABC"]}, "normalization_schemes: ABC is none"),
    ],
)
def test_configurations_that_cannot_be_used(model, change, message):
    content = plans()
    content["configurations"]["3d_fullres"] |= change
    with pytest.raises(KDError, match=rf"configurations.3d_fullres.{message}"):
        read_model_files(model(content, DATASET_JSON))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file_ending": "/../../x"}, "file_ending"),
        ({"file_ending": None}, "file_ending"),
        ({"labels": {}}, "labels"),
        ({"labels": {"a": 1.5}}, "found 1.5"),
        ({"labels": {"a": -1}}, "found -1"),
        ({"labels": {"\x1b]0;owned\x07": 1}}, "not a printable name"),
        ({"channel_names": []}, "channel_names"),
        ({"labels": {"0": "background", "1": "liver"}}, "labels: by number, as in nnU-Net v1's files"),
        ({"regions_class_order": "1"}, "regions_class_order"),
    ],
)
def test_dataset_json_that_cannot_be_used(tmp_path, change, message):
    (tmp_path / "dataset.json").write_text(json.dumps(DATASET_JSON | change))
    with pytest.raises(KDError, match=message):
        read_dataset_json(tmp_path / "dataset.json")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a\nb", "\x1b[31m", "x" * 256, None, 3])
def test_names_with_paths_in_them(name):
    assert not is_plain_name(name)


def test_plain_names():
    assert all(map(is_plain_name, ["case_001", "Fall ä", "a.b", "my plans & 50% <b>"]))


def test_whatever_nnunet_raises_is_a_refusal_of_one_line():
    with (
        pytest.raises(KDError, match=r"x cannot be used, because it is not as nnU-Net writes it \(ValueError: first\)"),
        refuse_unexpected_content("x"),
    ):
        raise ValueError("first\nsecond")
    with pytest.raises(KDError, match="^own$"), refuse_unexpected_content("x"):
        raise KDError("own")


def test_values_in_messages_are_short_and_printable():
    assert printable("\x1b[31m") == "'\\x1b[31m'"
    assert len(printable("x" * 10_000)) < 100
    assert printable(10**6000) == "a int"
