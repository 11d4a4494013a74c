from types import SimpleNamespace

import pytest

from nnunetv2_kd.nnunet.teacher_labels import agreement_note, labels_without_ignore
from nnunetv2_kd.trainers.provenance import teacher_labels
from nnunetv2_kd.unlabelled.labellers import label_problems, same_reader_problems

REGIONS = {
    "channel_names": {"0": "T1", "1": "T2"},
    "labels": {"background": 0, "whole": [1, 2], "core": 2},
    "regions_class_order": [1, 2],
}


def labeller(dataset_json, reader="SimpleITKIO"):
    return SimpleNamespace(
        folder="M",
        dataset_json=dataset_json,
        structures=labels_without_ignore(dataset_json),
        channels=list(dataset_json["channel_names"].values()),
        reader=type(reader, (), {}),
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"labels": {**REGIONS["labels"], "ignore": 3}}, None),
        ({"channel_names": {"0": "t1", "1": "T2"}}, None),
        ({"labels": {"background": 0, "whole": [1, 2], "core": 1}}, "numbers the labels otherwise"),
        ({"labels": {"background": 0, "core": 2, "whole": [1, 2]}}, "regions in another order"),
        ({"regions_class_order": [2, 1]}, "regions in another order"),
        ({"labels": {"background": 0, "whole": [1, 2]}}, "lacks the label core, which the dataset has"),
        ({"channel_names": {"0": "T2", "1": "T1"}}, "has the channels T2, T1, the dataset T1, T2"),
        ({"channel_names": {"0": "T1"}}, "has the channels T1, the dataset T1, T2"),
    ],
)
def test_a_teacher_labels_for_datasets_of_its_own_structures_and_channels(change, words):
    problems = label_problems(labeller({**REGIONS, **change}), REGIONS, ["T1", "T2"])
    assert problems == [] if words is None else words in problems[0]


def test_teachers_that_turn_images_in_different_ways_are_refused():
    one, other = labeller(REGIONS), labeller(REGIONS, "NibabelIOWithReorient")
    assert same_reader_problems([one, one]) == []
    assert "NibabelIOWithReorient, SimpleITKIO" in same_reader_problems([one, other])[0]


def test_what_a_dice_is_depends_on_who_labelled():
    dataset_json = {"teacher_labels": {"cases": ["a", "b"]}}
    assert agreement_note({}, ["a"]) == ""
    assert agreement_note(dataset_json, ["c"]) == ""
    assert agreement_note(dataset_json, ["a", "b"]).startswith("agreement with the teacher")
    assert "labelled 1 of the 2 validation cases" in agreement_note(dataset_json, ["a", "c"])


def test_a_teacher_may_have_seen_anything_where_the_dataset_does_not_say_what_it_was_trained_on():
    teacher = {
        "folder": "M",
        "fold": "0",
        "checkpoint": "c.pth",
        "sha256": "0",
        "trainer": "T",
        "epoch": 1,
        "params": 9,
    }
    told = {"cases": ["scan"], "teachers": [teacher], "of_dataset": "Dataset004_Test"}
    trainer = SimpleNamespace(dataset_json={"teacher_labels": told}, do_split=lambda: (["a", "scan"], ["b"]))
    record = teacher_labels(trainer)
    assert record.cases == ("scan",)
    assert record.validation_cases == 0
    assert [teacher.seen_validation_cases for teacher in record.teachers] == [None]
