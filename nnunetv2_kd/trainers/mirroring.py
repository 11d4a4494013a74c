"""The axes along which a student is mirrored. A teacher that was not trained with mirroring confuses structures that
are mirror images of each other, such as the left and the right kidney."""

from collections.abc import Iterable, Sequence

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.record import TeacherRecord

Axes = tuple[int, ...]


def common_axes(teachers: Iterable[TeacherRecord]) -> Axes | None:
    """Axes of the patch along which all teachers were mirrored in training; None if no teacher's are known."""
    known = [set(teacher.mirrored_axes) for teacher in teachers if teacher.mirrored_axes is not None]
    return tuple(sorted(set.intersection(*known))) if known else None


def student_axes(own: Axes, wanted: str | Axes, teachers: Axes | None, trainer: str) -> tuple[Axes, list[str]]:
    """Axes of the patch along which the student is mirrored in training and in prediction.

    Args:
        own: the axes of the nnU-Net trainer that it is built on.
        wanted: ``teacher``, ``trainer`` or axes, as in the options.
        teachers: the axes of its teachers; None: there are no teachers, or theirs are not known.
        trainer: its trainer's name, for messages.

    Returns:
        The axes, and lines for the log; no line if student, trainer and teacher all have the same axes.

    Raises:
        KDError: if the options name an axis along which the trainer does not mirror.
    """
    if wanted == "teacher":
        allowed = own if teachers is None else tuple(axis for axis in own if axis in teachers)
    elif wanted == "trainer":
        allowed = own
    else:
        allowed = tuple(sorted({int(axis) for axis in wanted}))
        if set(allowed) - set(own):
            raise KDError(
                f"'mirroring: {list(allowed)}' in the options, but {trainer} mirrors along {describe_axes(own)}. "
                "Name only axes among these, or use another trainer."
            )
    lines = []
    if allowed != own:
        why = "as its teacher was in training" if wanted == "teacher" else "as the options say"
        lines.append(
            f"Mirroring: the student is mirrored along {describe_axes(allowed)}, in training and in prediction, {why} "
            f"({trainer} by itself: {describe_axes(own)})."
        )
        if wanted == "teacher":
            lines.append(
                "To mirror as the trainer does: 'mirroring: trainer' in the options. A student alone, for comparison, "
                f"needs 'mirroring: {list(allowed)}' in its options."
            )
    unknown = [] if teachers is None else [axis for axis in allowed if axis not in teachers]
    if unknown:
        lines.append(
            f"WARNING: the student is mirrored along {describe_axes(allowed)}, but its teacher was mirrored along "
            f"{describe_axes(teachers or ())}, so it has never seen such images. If left and right matter, it teaches "
            "the wrong side. To prevent this: 'mirroring: teacher' in the options."
        )
    return allowed, lines


def describe_axes(axes: Sequence[int]) -> str:
    if not axes:
        return "no axis"
    return f"{'axis' if len(axes) == 1 else 'axes'} {', '.join(map(str, axes))}"
