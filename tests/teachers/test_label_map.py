"""Labels by name: sums, partial teachers, regions, and every map that must not be used."""

import pytest
import torch

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.teachers.combine import mix_known
from nnunetv2_kd.teachers.label_map import check_covered, map_labels, map_problems, structures_of

TOTAL = structures_of({"labels": {"background": 0, "liver": 3, "kidney_left": 1, "kidney_right": 2, "ignore": 4}})
TUMOUR = structures_of({"labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}})
PARTS = structures_of({"labels": {"background": 0, "edema": 1, "necrosis": 2, "enhancing": 3}})


def student(*names):
    return structures_of({"labels": {"background": 0} | {name: n for n, name in enumerate(names, start=1)}})


def problems(wanted, *teachers):
    named = [(f"T{n}", structures, names) for n, (structures, names) in enumerate(teachers, start=1)]
    return map_problems(wanted, named, "--labels {name}=")


def test_heads_are_in_nnunets_order():
    assert TOTAL.names == ["kidney_left", "kidney_right", "liver"]  # by value
    assert TOTAL.head("liver") == 3
    assert TUMOUR.uses_sigmoid
    assert TUMOUR.names == ["whole", "core", "enhancing"]  # as written
    assert TUMOUR.head("whole") == 0


def test_probabilities_are_summed(rng):
    wanted = student("kidney", "liver")
    named = {"kidney": ["kidney_left", "kidney_right"]}
    assert problems(wanted, (TOTAL, named)) == []
    found = map_labels(wanted, TOTAL, named)
    assert found.known == (0, 1)
    assert not found.is_one_to_one
    logits = torch.randn(2, 4, 5, generator=rng)
    p = logits.softmax(dim=1)
    expected = torch.stack((p[:, 0], p[:, 1] + p[:, 2], p[:, 3]), dim=1)
    torch.testing.assert_close(found.logits(logits).softmax(dim=1), expected)
    torch.testing.assert_close(found.probabilities(logits[0], dim=0), expected[0, 1:])


def test_equal_labels_are_left_alone(rng):
    found = map_labels(TOTAL, TOTAL, {})
    logits = torch.randn(1, 4, 2, generator=rng)
    assert found.is_one_to_one
    assert found.logits(logits) is logits


def test_a_partial_teacher_knows_its_own(rng):
    wanted = student("spleen", "liver")
    found = map_labels(wanted, TOTAL, {"spleen": []})
    assert found.known_heads == (2,)
    assert found.left_out == {0}
    logits = torch.randn(1, 4, 2, generator=rng)
    p = logits.softmax(dim=1)[:, 3:]
    torch.testing.assert_close(found.logits(logits).softmax(dim=1), torch.cat((1 - p, p), dim=1))
    assert found.described == "not spleen, liver as liver"


def test_regions_from_classes_and_the_other_way(rng):
    named = {"whole": ["edema", "necrosis", "enhancing"], "core": ["necrosis", "enhancing"]}
    assert problems(TUMOUR, (PARTS, named)) == []
    logits = torch.randn(1, 4, 6, generator=rng)
    p = logits.softmax(dim=1)
    found = map_labels(TUMOUR, PARTS, named).logits(logits).sigmoid()
    torch.testing.assert_close(found[:, 0], p[:, 1:].sum(dim=1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[:, 2], p[:, 3], atol=1e-5, rtol=1e-4)
    regions = torch.randn(1, 3, 6, generator=rng)
    tumour = map_labels(student("tumour"), TUMOUR, {"tumour": ["whole"]}).logits(regions).softmax(dim=1)
    torch.testing.assert_close(tumour[:, 1], regions.sigmoid()[:, 0])


@pytest.mark.parametrize(
    ("wanted", "teachers", "expected"),
    [
        (student("liver"), [(TOTAL, {"liver": ["lever"]})], "no teacher has a label 'lever' (T1: kidney_left"),
        (student("liver"), [(TOTAL, {"lung": ["liver"]})], "T1: the student has no label 'lung', only liver"),
        (student("liver", "spleen"), [(TOTAL, {})], "no teacher knows 'spleen' (T1: kidney_left, kidney_right, liver)"),
        (student("liver"), [(TOTAL, {"liver": []})], "T1: it knows none of the student's labels (liver)"),
        (
            student("a", "b"),
            [(TOTAL, {"a": ["liver"], "b": ["liver"]})],
            "'liver' is mapped twice, to 'a' and to 'b'",
        ),
        (student("a"), [(TOTAL, {"a": ["liver", "liver"]})], "T1: 'a' names 'liver' twice"),
        (
            student("a"),
            [(TUMOUR, {"a": ["whole", "core"]})],
            "'whole' and 'core' overlap, so they cannot be added up to 'a'",
        ),
        (
            student("a", "b"),
            [(TUMOUR, {"a": ["whole"], "b": ["core"]})],
            "cannot be 'a' and 'b', which are exclusive",
        ),
    ],
)
def test_maps_that_are_refused(wanted, teachers, expected):
    assert any(expected in problem for problem in problems(wanted, *teachers))


def test_two_partial_teachers_cover_what_neither_knows_alone():
    wanted = student("spleen", "liver")
    spleen = structures_of({"labels": {"background": 0, "spleen": 1}})
    assert problems(wanted, (TOTAL, {}), (spleen, {})) == []
    maps = [map_labels(wanted, teacher, {}) for teacher in (TOTAL, spleen)]
    check_covered(wanted, maps)
    check_covered(wanted, [None, maps[0]])
    with pytest.raises(KDError, match="No teacher knows spleen. Under labels:, .* spleen: null"):
        check_covered(wanted, maps[:1])


def test_each_structure_is_mixed_from_those_that_know_it():
    first = torch.tensor([0.5, 0.3]).view(1, 2, 1)
    second = torch.tensor([0.6, 0.9]).view(1, 2, 1)
    mixed = mix_known([first, second], [[1, 2], [2, 3]], [1.0, 2.0], sigmoid=True)
    torch.testing.assert_close(mixed.flatten(), torch.tensor([0.5, (0.3 + 2 * 0.6) / 3, 0.9]))
    exclusive = mix_known([first, second], [[1, 2], [2, 3]], [1.0, 2.0], sigmoid=False)
    torch.testing.assert_close(exclusive, mixed / mixed.sum())
