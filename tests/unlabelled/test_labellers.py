from types import SimpleNamespace

import pytest

from nnunetv2_kd.nnunet.teacher_labels import agreement_note
from nnunetv2_kd.teachers.label_map import structures_of
from nnunetv2_kd.trainers.provenance import teacher_labels
from nnunetv2_kd.unlabelled.labellers import channel_problems, label_problems, same_reader_problems

REGIONS = {
    "channel_names": {"0": "T1", "1": "T2"},
    "labels": {"background": 0, "whole": [1, 2], "core": 2},
    "regions_class_order": [1, 2],
}


def labeller(dataset_json, reader="SimpleITKIO", **named):
    return SimpleNamespace(
        folder="M",
        dataset_json=dataset_json,
        named=named,
        channels=list(dataset_json["channel_names"].values()),
        reader=type(reader, (), {}),
    )


@pytest.mark.parametrize(
    ("labels", "named", "words"),
    [
        (REGIONS["labels"], {}, None),
        ({**REGIONS["labels"], "ignore": 3}, {}, None),
        ({"background": 0, "core": 2, "whole": [1, 2]}, {}, None),  # another order: matched by name
        ({"background": 0, "tumour": [1, 2], "core": 2}, {"whole": ["tumour"]}, None),
        ({"background": 0, "edema": 1, "core": 2}, {"whole": ["edema", "core"]}, None),
        (
            {"background": 0, "whole": [1, 2]},
            {},
            "no teacher knows 'core' (M: whole). Say what it is called there, --labels",
        ),
        (REGIONS["labels"], {"whole": ["all"]}, "no teacher has a label 'all'"),
        (REGIONS["labels"], {"all": ["whole"]}, "M: the student has no label 'all', only whole, core"),
    ],
)
def test_a_teachers_labels_are_matched_by_name_and_by_what_the_user_says(labels, named, words):
    problems = label_problems([labeller({**REGIONS, "labels": labels}, **named)], structures_of(REGIONS))
    assert problems == [] if words is None else words in problems[0]


def test_teachers_cover_the_labels_together():
    core, whole = ({**REGIONS, "labels": {"background": 0, **own}} for own in ({"core": 2}, {"whole": [1, 2]}))
    assert label_problems([labeller(core), labeller(whole)], structures_of(REGIONS)) == []


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["t1", "T2"], None),
        (["T2", "T1"], "has the channels T2, T1, the dataset T1, T2"),
        (["T1"], "has the channels T1, the dataset T1, T2"),
    ],
)
def test_channels_are_compared_in_their_order(names, words):
    own = {**REGIONS, "channel_names": dict(enumerate(names))}
    problems = channel_problems(labeller(own), ["T1", "T2"])
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
    message = {"cases": ["scan"], "teachers": [teacher], "of_dataset": "Dataset004_Test"}
    trainer = SimpleNamespace(dataset_json={"teacher_labels": message}, do_split=lambda: (["a", "scan"], ["b"]))
    record = teacher_labels(trainer)
    assert record.cases == ("scan",)
    assert record.validation_cases == 0
    assert [teacher.seen_validation_cases for teacher in record.teachers] == [None]
