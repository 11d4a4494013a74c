"""Along which axes a student is mirrored: its teacher must know mirrored images from its own training, or it confuses
structures that are each other's mirror image, such as a left and a right kidney."""

from collections.abc import Iterable, Sequence

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.record import TeacherRecord

Axes = tuple[int, ...]


def common_axes(teachers: Iterable[TeacherRecord]) -> Axes | None:
    """Axes of the patch along which all of the teachers were mirrored; None where none of them says."""
    known = [set(teacher.mirrored_axes) for teacher in teachers if teacher.mirrored_axes is not None]
    return tuple(sorted(set.intersection(*known))) if known else None


def student_axes(own: Axes, wanted: str | Axes, teachers: Axes | None, trainer: str) -> tuple[Axes, list[str]]:
    """Axes of the patch along which the student is mirrored in training and in prediction.

    Args:
        own: those of the nnU-Net trainer that it is built on.
        wanted: ``teacher``, ``trainer`` or axes, as in the options.
        teachers: those of its teachers; None: there is none, or they do not say.
        trainer: its trainer's name, for messages.

    Returns:
        The axes, and lines for the log; no line where it is mirrored as trainer and teacher are.

    Raises:
        KDError: where the options name an axis along which the trainer does not mirror.
    """
    if wanted == "teacher":
        allowed = own if teachers is None else tuple(axis for axis in own if axis in teachers)
    elif wanted == "trainer":
        allowed = own
    else:
        allowed = tuple(sorted({int(axis) for axis in wanted}))
        if set(allowed) - set(own):
            raise KDError(
                f"'mirroring: {list(allowed)}' in the options: {trainer} mirrors along {in_words(own)}. Name some of "
                "these, or another trainer."
            )
    lines = []
    if allowed != own:
        why = "as its teacher was in training" if wanted == "teacher" else "as the options say"
        lines.append(
            f"Mirroring: the student is mirrored along {in_words(allowed)}, in training and in prediction, {why} "
            f"({trainer} by itself: {in_words(own)})."
        )
        if wanted == "teacher":
            lines.append(
                "To mirror it otherwise: 'mirroring: trainer' in the options. A student alone to compare it with needs "
                f"'mirroring: {list(allowed)}' in its options."
            )
    unknown = [] if teachers is None else [axis for axis in allowed if axis not in teachers]
    if unknown:
        lines.append(
            f"WARNING: the student is mirrored along {in_words(allowed)}, its teacher was along "
            f"{in_words(teachers or ())} only, so the teacher is asked about images of a kind that it never saw. Where "
            "left and right matter it teaches wrong sides. 'mirroring: teacher' in the options mends it."
        )
    return allowed, lines


def in_words(axes: Sequence[int]) -> str:
    if not axes:
        return "no axis"
    return f"{'axis' if len(axes) == 1 else 'axes'} {', '.join(map(str, axes))}"
