import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.teachers.case_shares import shares, shares_by_group, with_teachers

CASES = [f"case_{number:02d}" for number in range(20)]


@given(count=st.integers(1, 40), teachers=st.integers(1, 10), seed=st.integers(0, 9))
def test_every_case_teaches_one_teacher(count, teachers, seed):
    cases = [f"c{number}" for number in range(count)]
    if count < teachers:
        with pytest.raises(KDError, match=f"{teachers} teachers cannot share {count} training cases"):
            shares(cases, teachers, seed=seed)
        return
    dealt = shares(cases, teachers, seed=seed)
    assert sorted(case for share in dealt for case in share) == sorted(cases)
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


def test_a_seed_gives_the_same_shares_and_another_gives_others():
    assert shares(CASES, 3, seed=1) == shares(CASES[::-1], 3, seed=1)
    assert shares(CASES, 3, seed=1) != shares(CASES, 3, seed=2)


def test_a_limit():
    assert [len(share) for share in shares(CASES, 3, limit=4)] == [4, 4, 4]


def test_groups_stay_together():
    groups = {case: "abcde"[number % 5] for number, case in enumerate(CASES)}
    dealt = shares_by_group(CASES, groups, teachers=2)
    for share in dealt:
        for group in {groups[case] for case in share}:
            assert sum(groups[case] == group for case in share) == 4
    assert sorted(len(share) for share in dealt) == [8, 12]
    assert len(shares_by_group(CASES, groups)) == 5
    with pytest.raises(KDError, match=r"6 teachers cannot share 5 groups \(a, b, c, d, e\)"):
        shares_by_group(CASES, groups, teachers=6)
    with pytest.raises(KDError, match="1 training cases have no group, the first is case_00"):
        shares_by_group(CASES, dict.fromkeys(CASES[1:], "a"))


def test_folds_that_are_there_stay():
    splits = [{"train": CASES[:10], "val": CASES[10:]}, {"train": CASES[10:], "val": CASES[:10]}]
    dealt = shares(splits[1]["train"], 2)
    extended, folds = with_teachers(splits, 1, dealt)
    assert extended[:2] == splits
    assert folds == [2, 3]
    assert all(extended[fold]["val"] == splits[1]["val"] for fold in folds)
    assert with_teachers(extended, 1, dealt) == (extended, folds)
