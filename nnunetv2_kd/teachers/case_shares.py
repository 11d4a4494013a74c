"""Shares of the training cases for limit-trained teachers (arXiv 2303.09494): each learns from its own few cases."""

import random
from collections.abc import Mapping, Sequence

from nnunetv2_kd.errors import KDError

Split = dict[str, list[str]]


def shares(cases: Sequence[str], teachers: int, limit: int | None = None, seed: int = 0) -> list[list[str]]:
    """Shuffle the cases and deal them out: every case to one teacher, in shares as equal as possible.

    Args:
        cases: training cases of one fold.
        teachers: how many.
        limit: maximum number of cases per teacher; the remaining cases are not used.
        seed: of the shuffling.

    Raises:
        KDError: if there are fewer cases than teachers.

    >>> [len(share) for share in shares(["a", "b", "c", "d", "e"], 2)]
    [3, 2]
    """
    if len(cases) < teachers:
        raise KDError(f"{teachers} teachers cannot share {len(cases)} training cases: each needs at least one.")
    shuffled = sorted(cases)
    random.Random(seed).shuffle(shuffled)
    return [sorted(shuffled[start::teachers][:limit]) for start in range(teachers)]


def shares_by_group(
    cases: Sequence[str],
    groups: Mapping[str, str],
    teachers: int | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> list[list[str]]:
    """Like `shares`, but cases of one group (site, scanner) stay together. Large groups are dealt out first, each to
    the teacher with the fewest cases so far.

    Args:
        groups: the group of every case; entries for other cases are ignored.
        teachers: how many; None: one per group.

    Raises:
        KDError: if a case has no group, or there are fewer groups than teachers.
    """
    missing = sorted(set(cases) - set(groups))
    if missing:
        raise KDError(f"{len(missing)} training cases have no group, the first is {missing[0]}.")
    members: dict[str, list[str]] = {}
    for case in sorted(cases):
        members.setdefault(groups[case], []).append(case)
    teachers = teachers or len(members)
    if len(members) < teachers:
        raise KDError(f"{teachers} teachers cannot share {len(members)} groups ({', '.join(sorted(members))}).")
    dealt: list[list[str]] = [[] for _ in range(teachers)]
    for _, of_group in sorted(members.items(), key=lambda item: (-len(item[1]), item[0])):
        min(dealt, key=len).extend(of_group)
    for share in dealt:
        random.Random(seed).shuffle(share)
    return [sorted(share[:limit]) for share in dealt]


def with_teachers(splits: list[Split], fold: int, dealt: list[list[str]]) -> tuple[list[Split], list[int]]:
    """The splits with one more fold per teacher, each with the validation cases of ``fold``.

    Returns:
        The longer list (the given entries first, unchanged), and the numbers of the teachers' folds. Folds that already
        exist are not added again.
    """
    extended = list(splits)
    folds = []
    for share in dealt:
        split = {"train": share, "val": splits[fold]["val"]}
        if split not in extended:
            extended.append(split)
        folds.append(extended.index(split))
    return extended, folds
