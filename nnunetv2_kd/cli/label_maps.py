"""The flag ``--labels`` of the commands that run teachers."""

import re

from nnunetv2_kd.errors import KDError, listing


def label_maps(entries: list[str] | None, count: int) -> list[dict[str, tuple[str, ...]]]:
    """Read ``kidney=kidney_left,kidney_right`` for all teachers, ``2:kidney=kidneys`` for the second.

    Returns:
        For every teacher, its labels that make up each of the student's.

    Raises:
        KDError: lists the entries that cannot be read.
    """
    maps: list[dict[str, tuple[str, ...]]] = [{} for _ in range(count)]
    problems = []
    for entry in entries or ():
        match = re.fullmatch(r"(?:(\d+):)?([^=]+)=(.*)", entry)
        if match is None:
            problems.append(f"expected LABEL=THEIR_LABEL[,THEIR_LABEL], found {entry!r}")
        elif match[1] and not 1 <= int(match[1]) <= count:
            problems.append(f"{entry!r} is for teacher {match[1]}, but there are {count}")
        else:
            names = tuple(name.strip() for name in match[3].split(",") if name.strip())
            for number in [int(match[1]) - 1] if match[1] else range(count):
                if maps[number].setdefault(match[2].strip(), names) != names:
                    problems.append(f"{match[2]!r} is mapped twice for teacher {number + 1}")
    if problems:
        raise KDError(listing("--labels cannot be used:", problems))
    return maps
