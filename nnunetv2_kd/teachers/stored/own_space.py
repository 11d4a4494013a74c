"""How a teacher sees a raw image: preprocessed with its own plans, in its own space, instead of the student's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.nnunet.images import reading_problems
from nnunetv2_kd.teachers.check import channel_meanings, channels
from nnunetv2_kd.teachers.stored.grids import Grid, Reading, compare_readers, resample

Predict = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Seen:
    """A case as a teacher sees it.

    Attributes:
        image: ``(C, *S)`` preprocessed for the teacher.
        grid: of that image; None if it is the student's.
        student: the student's grid.
        reading: from the student's image to the teacher's.
    """

    image: Tensor
    grid: Grid | None = None
    student: Grid | None = None
    reading: Reading = field(default_factory=Reading)

    def to_student(self, array: Tensor) -> Tensor:
        """Resample an array from the teacher's grid ``(C, *S_t)`` to the student's; see `resample`."""
        if self.grid is None or self.student is None:
            return array
        return resample(array, self.grid, self.student, self.reading)

    def labels_from_student(self, target: Tensor) -> Tensor:
        """Resample a target from the student's grid to the teacher's."""
        if self.grid is None or self.student is None:
            return target
        return resample(target, self.student, self.grid, self.reading.inverse, nearest=True)


class OwnSpace:
    """A teacher's plans applied to the images of a student's dataset.

    Attributes:
        problems: images that the teacher cannot read according to their headers, one line each.

    Args:
        plans: the teacher's.
        configuration: the teacher's.
        dataset_json: the teacher's.
        student_plans, student_dataset_json: of the dataset whose images these are.
        images: the files of each case, one per channel of the student (or one with all channels).
        channel_names: the student's name for each of the teacher's channels whose names differ.
        previous: in a cascade, the space and the prediction of the previous stage.

    Raises:
        KDError: if a channel is missing, or the teacher cannot read such files.
    """

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        dataset_json: dict[str, Any],
        student_plans: dict[str, Any],
        student_dataset_json: dict[str, Any],
        images: Mapping[str, Sequence[str]],
        channel_names: Mapping[str, str],
        previous: tuple["OwnSpace", Predict] | None = None,
    ) -> None:
        self.manager = PlansManager(plans)
        self.configuration = self.manager.get_configuration(configuration)
        self.dataset_json = dataset_json
        self.student = PlansManager(student_plans)
        self.images = images
        self.previous = previous
        self.ending = str(student_dataset_json["file_ending"])
        theirs, mine = channel_meanings(dataset_json, student_dataset_json)
        self.channels = (
            list(range(len(mine)))
            if theirs == mine and not channel_names
            else match_channels(channels(dataset_json), channels(student_dataset_json), channel_names)
        )
        reader = self.manager.image_reader_writer_class
        if self.ending.lower() not in reader.supported_file_endings:
            raise KDError(
                f"The teacher reads images with {reader.__name__} ({', '.join(reader.supported_file_endings)}), "
                f"but the student's images end with {self.ending}. Convert them, and preprocess the converted images."
            )
        self.problems = reading_problems(images, reader, 0, whole=False)
        self._last: tuple[str, Seen] | None = None

    def see(self, case: str, properties: Mapping[str, Any], size: Sequence[int]) -> Seen:
        """A case as the teacher sees it. The last case is cached, for other folds of the same model.

        Args:
            case: its name.
            properties, size: of the case as it was preprocessed for the student.

        Raises:
            KDError: if the image cannot be read, or is not the one that was preprocessed for the student.
        """
        if self._last is None or self._last[0] != case:
            self._last = case, self._see(case, properties, size)
        return self._last[1]

    def student_axes(self, mirrored: Sequence[int], student_dims: int) -> tuple[int, ...]:
        """The axes of the student's patch that correspond to given axes of the teacher's.

        Args:
            mirrored: axes of the teacher's patch.
            student_dims: dimensions of the student's patch, 2 or 3.
        """
        dims = len(self.configuration.patch_size)
        own = [self.manager.transpose_forward[axis + 3 - dims] for axis in mirrored]
        same = self.manager.image_reader_writer_class is self.student.image_reader_writer_class
        if not same and len(own) < dims:
            return ()  # the correspondence may differ from image to image
        order = self.student.transpose_forward[3 - student_dims :]
        return tuple(axis for axis, of_image in enumerate(order) if of_image in own)

    def _see(self, case: str, properties: Mapping[str, Any], size: Sequence[int]) -> Seen:
        data, read = self._read(case)
        image, grid = self._preprocess(data, dict(read))
        reading = compare_readers(
            self.student.image_reader_writer_class,
            self.manager.image_reader_writer_class,
            data.shape[1:],
            read,
            self.ending,
        )
        return Seen(image, grid, Grid.of(self.student.transpose_forward, properties, size), reading)

    def _read(self, case: str) -> tuple[np.ndarray, dict[str, Any]]:
        """The teacher's channels of an image, and the properties that its reader gives."""
        files = list(self.images[case])
        try:
            data, properties = self.manager.image_reader_writer_class().read_images(files)
        except Exception as error:  # every reader raises errors of its own
            raise KDError(f"{', '.join(files)} cannot be read: {error}") from error
        if data.shape[0] <= max(self.channels):
            raise KDError(f"{', '.join(files)}: {data.shape[0]} channels, expected {max(self.channels) + 1} or more")
        return data[self.channels], properties

    def _preprocess(self, data: np.ndarray, properties: dict[str, Any]) -> tuple[Tensor, Grid]:
        """The image ``(C, *S)`` and its grid; in a cascade with the previous stage's segmentation."""
        before = None if self.previous is None else self._previous_stage(data, properties)
        preprocessor = self.configuration.preprocessor_class(verbose=False)
        image, segmentation, done = preprocessor.run_case_npy(
            data, before, dict(properties), self.manager, self.configuration, self.dataset_json
        )
        if before is not None:
            labels = self.manager.get_label_manager(self.dataset_json).foreground_labels
            image = np.vstack((image, convert_labelmap_to_one_hot(segmentation[0], labels, image.dtype)))
        grid = Grid.of(self.manager.transpose_forward, done, image.shape[1:])
        return torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32)), grid

    def _previous_stage(self, data: np.ndarray, properties: dict[str, Any]) -> np.ndarray:
        """The previous stage's segmentation, ``(1, *S)`` in the image's space, as nnU-Net would write it."""
        assert self.previous is not None
        space, predict = self.previous
        preprocessor = space.configuration.preprocessor_class(verbose=False)
        image, _, done = preprocessor.run_case_npy(
            data, None, dict(properties), space.manager, space.configuration, space.dataset_json
        )
        logits = predict(torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32)))
        segmentation = convert_predicted_logits_to_segmentation_with_correct_shape(
            logits,
            space.manager,
            space.configuration,
            space.manager.get_label_manager(space.dataset_json),
            done,
            num_threads_torch=torch.get_num_threads(),
        )
        return np.asarray(segmentation, dtype=np.int16)[None]  # signed: -1 marks voxels outside the body


def match_channels(teacher: Mapping[str, str], student: Mapping[str, str], named: Mapping[str, str]) -> list[int]:
    """For each of the teacher's channels, find the channel of the student's images by name, ignoring case.

    Args:
        teacher, student: names by channel number, as in a dataset.json.
        named: the student's name for each of the teacher's channels whose names differ.

    Raises:
        KDError: lists the channels that are missing.
    """
    numbers = {str(name).lower(): int(number) for number, name in student.items()}
    wanted = {name.lower(): other for name, other in named.items()}
    of_teacher = [str(name) for _, name in sorted(teacher.items(), key=lambda item: int(item[0]))]
    found = [numbers.get(wanted.get(name.lower(), name).lower()) for name in of_teacher]
    missing = [name for name, number in zip(of_teacher, found, strict=True) if number is None]
    names = ", ".join(map(str, student.values()))
    strangers = [name for name in named if name.lower() not in {other.lower() for other in of_teacher}]
    if missing or strangers:
        what = f"the student's images ({names}) have no channel {', '.join(missing)}" if missing else ""
        odd = f"the teacher has no channel {', '.join(strangers)}, only {', '.join(of_teacher)}" if strangers else ""
        raise KDError(
            f"The channels do not fit: {'; '.join(part for part in (what, odd) if part)}. If a channel only has "
            "another name, give both: --channels THEIR_NAME=STUDENTS_NAME"
        )
    return [number for number in found if number is not None]
