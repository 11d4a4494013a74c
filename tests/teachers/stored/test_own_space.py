"""A teacher with its own space: its predictions must be at the right voxels of the student.

The images are ramps, one channel per axis of the scanner's space, so that the intensities of a voxel give its position.
Preprocessed for the teacher and resampled to the student's grid, they must equal what was preprocessed for the student.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.teachers.stored.grids import Grid, Reading, resample
from nnunetv2_kd.teachers.stored.own_space import OwnSpace, match_channels
from tests.small_networks import architecture

FLIPPED = (-1, 0, 0, 0, 0, 1, 0, 1, 0)  # x runs to the left, and the two other axes are swapped
OBLIQUE = (0.98, -0.199, 0, 0.199, 0.98, 0, 0, 0, 1)
RAMPS = {"0": "x", "1": "y", "2": "z", "3": "body"}


def ramps(folder: Path, direction: tuple[float, ...], spacing=(0.9, 1.3, 2.1), size=(31, 22, 17)) -> list[str]:
    """Files of three ramps that are 0 outside of a box; and of a larger body, with odd and even sizes."""
    files = []
    box = np.zeros(size[::-1], bool)
    box[2:-1, 3:-4, 5:-2] = True
    body = np.zeros(size[::-1], bool)
    body[1:, 1:-1, 2:] = True
    plain = sitk.Image(size, sitk.sitkFloat32)
    plain.SetSpacing(spacing)
    plain.SetDirection(direction)
    plain.SetOrigin((-7.0, 11.0, 3.0))
    steps = np.array(direction).reshape(3, 3) @ np.diag(spacing)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in size), indexing="ij"), axis=-1)
    points = (index @ steps.T).transpose(2, 1, 0, 3)
    for number in range(4):
        values = body.astype(np.float32) if number == 3 else np.where(box, 200 + points[..., number], 0)
        image = sitk.GetImageFromArray(values.astype(np.float32))
        image.CopyInformation(plain)
        files.append(str(folder / f"case_000{number}.nii.gz"))
        sitk.WriteImage(image, files[-1])
    return files


def plans(
    spacing: list[float], transpose: tuple[int, ...] = (0, 1, 2), reader: str = "SimpleITKIO", channels: int = 4
) -> dict[str, Any]:
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": False}
    configuration = {
        "data_identifier": "any",
        "preprocessor_name": "DefaultPreprocessor",
        "spacing": spacing,
        "patch_size": [16] * len(spacing),
        "normalization_schemes": ["NoNormalization"] * channels,
        "use_mask_for_norm": [False] * channels,
        "architecture": architecture(len(spacing)),
    }
    for what in ("data", "seg", "probabilities"):
        configuration[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
        configuration[f"resampling_fn_{what}_kwargs"] = resampling | {"is_seg": what == "seg"}
    return {
        "dataset_name": "Dataset009_Ramps",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": reader,
        "transpose_forward": list(transpose),
        "transpose_backward": [int(axis) for axis in np.argsort(transpose)],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(number): {} for number in range(channels)},
        "configurations": {"only": configuration},
    }


def dataset_json(*names: str) -> dict[str, Any]:
    return {
        "channel_names": {str(n): name for n, name in enumerate(names)},
        "labels": {"background": 0, "a": 1},
        "file_ending": ".nii.gz",
    }


def preprocessed(made: dict[str, Any], files: list[str], described: dict[str, Any]) -> tuple[np.ndarray, dict]:
    """The student's case as nnU-Net preprocesses it."""
    manager = PlansManager(made)
    configuration = manager.get_configuration("only")
    preprocessor = configuration.preprocessor_class(verbose=False)
    data, _, properties = preprocessor.run_case(files, None, manager, configuration, described)
    return data, properties


def space_of(made: dict[str, Any], student: dict[str, Any], files: list[str], *names: str) -> OwnSpace:
    described = dataset_json(*RAMPS.values())
    return OwnSpace(made, "only", dataset_json(*names), student, described, {"case": files}, {})


@pytest.mark.parametrize("direction", [FLIPPED, OBLIQUE], ids=["flipped", "oblique"])
@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        (([1.5, 0.7, 0.8],), ([2.0, 2.0, 2.0],)),
        (([2.0, 1.0, 1.0], (2, 0, 1)), ([1.1, 1.7, 0.9],)),
        (([1.0, 1.0, 1.0], (1, 2, 0), "NibabelIOWithReorient"), ([3.0, 1.2, 1.2], (2, 1, 0))),
        (([1.0, 1.0, 1.0],), ([1.4, 1.2, 1.3], (2, 0, 1), "NibabelIOWithReorient")),
        (([1.0, 1.0, 1.0], (0, 1, 2), "NibabelIO"), ([1.6, 1.6],)),
        (([0.8, 1.1], (2, 0, 1)), ([2.0, 1.5, 1.5], (0, 2, 1))),
    ],
    ids=["anisotropic", "transposed", "reoriented", "reoriented student", "2d student", "2d teacher"],
)
def test_a_teacher_that_is_a_function_of_position(tmp_path, direction, teacher, student):
    files = ramps(tmp_path, direction)
    for_student = plans(*student)
    data, properties = preprocessed(for_student, files, dataset_json(*RAMPS.values()))
    space = space_of(plans(*teacher, channels=3), for_student, files, "X", "y", "Z")  # not the body: another crop
    seen = space.see("case", properties, data.shape[1:])
    found = seen.to_student(seen.image).numpy()
    assert found.shape == (3, *data.shape[1:])
    inside = inner(data[:3])
    assert inside.sum() > 100
    np.testing.assert_allclose(found[:, inside], data[:3, inside], atol=2e-3)
    assert (found[:, far_outside(data[:3])] == 0).all()  # background, where the teacher has cropped
    assert far_outside(data[:3]).any()


def inner(data: np.ndarray) -> np.ndarray:
    """Voxels whose neighbours are inside the ramps' box too, where linear interpolation is exact."""
    box = (data > 150).all(axis=0)
    for axis in range(3):
        for step in (-2, -1, 1, 2):
            moved = np.roll(box, step, axis)
            edge = [slice(None)] * 3
            edge[axis] = slice(None, step) if step > 0 else slice(step, None)
            moved[tuple(edge)] = False
            box = box & moved
    return box


def far_outside(data: np.ndarray) -> np.ndarray:
    return (data == 0).all(axis=0)


def test_mirrored_axes_are_those_of_the_students_patch(tmp_path):
    files = ramps(tmp_path, FLIPPED)
    names = ("x", "y", "z")
    space = space_of(plans([1.0, 1.0, 1.0], (2, 0, 1), channels=3), plans([1.0, 1.0, 1.0], (0, 1, 2)), files, *names)
    assert space.student_axes((0,), 3) == (2,)
    assert space.student_axes((1, 2), 3) == (0, 1)
    assert space.student_axes((0, 1), 2) == (1,)  # the first axis of the image is not in the student's planes
    flat = space_of(plans([1.0, 1.0], channels=3), plans([1.0, 1.0, 1.0]), files, *names)
    assert flat.student_axes((0, 1), 3) == (1, 2)
    other = space_of(plans([1.0] * 3, reader="NibabelIO", channels=3), plans([1.0] * 3), files, *names)
    assert other.student_axes((0, 1, 2), 3) == (0, 1, 2)
    assert other.student_axes((0, 1), 3) == ()


def test_labels_go_the_other_way(tmp_path):
    files = ramps(tmp_path, FLIPPED)
    student = plans([1.1, 1.7, 0.9], (2, 0, 1))
    data, properties = preprocessed(student, files, dataset_json(*RAMPS.values()))
    space = space_of(plans([1.0, 1.2, 1.0], (1, 2, 0), "NibabelIOWithReorient", 3), student, files, "x", "y", "z")
    seen = space.see("case", properties, data.shape[1:])
    half = torch.from_numpy((data[:1] > 186).astype(np.int16))
    found = seen.labels_from_student(half)
    assert 0.2 < half.float().mean() < 0.8
    assert found.dtype == torch.int16
    assert found.shape[1:] == seen.image.shape[1:]
    ramp = seen.image[0].numpy()
    away = inner(seen.image.numpy()) & (np.abs(ramp - 186) > 2)  # from the border, where the nearest voxel decides
    assert away.sum() > 100
    np.testing.assert_array_equal(found[0].numpy()[away], ramp[away] > 186)


def test_equal_grids_are_left_as_they_are():
    grid = Grid((2, 0, 1), (30, 20, 11), ((1, 29), (0, 20), (2, 9)), (13, 21, 9))
    array = torch.randn(2, 13, 21, 9)
    assert torch.equal(resample(array, grid, grid, Reading()), array)


def test_downsampling_by_two_is_the_mean_of_eight():
    fine = Grid((0, 1, 2), (8, 6, 4), ((0, 8), (0, 6), (0, 4)), (8, 6, 4))
    coarse = Grid((0, 1, 2), (8, 6, 4), ((0, 8), (0, 6), (0, 4)), (4, 3, 2))
    array = torch.randn(1, 8, 6, 4)
    means = torch.nn.functional.avg_pool3d(array, 2)
    torch.testing.assert_close(resample(array, fine, coarse, Reading()), means)


def test_another_image_and_another_place_are_refused(tmp_path):
    grid = Grid((0, 1, 2), (8, 8, 8), ((0, 4), (0, 8), (0, 8)), (4, 8, 8))
    for other, expected in (
        (Grid((0, 1, 2), (8, 8, 9), ((0, 8), (0, 8), (0, 8)), (8, 8, 8)), r"the image has \[8, 8, 8\] voxels"),
        (Grid((0, 1, 2), (8, 8, 8), ((5, 8), (0, 8), (0, 8)), (3, 8, 8)), "do not overlap"),
    ):
        with pytest.raises(KDError, match=expected):
            resample(torch.zeros(1, 4, 8, 8), grid, other, Reading())


def test_a_cascade_sees_the_stage_before(tmp_path):
    """The previous stage has a coarser grid, and its output is read as nnU-Net would read its own files."""
    files = ramps(tmp_path, FLIPPED)
    student = plans([2.0, 1.5, 1.5])
    data, properties = preprocessed(student, files, dataset_json(*RAMPS.values()))
    first = space_of(plans([3.0, 2.0, 2.0], (1, 0, 2), channels=3), student, files, "x", "y", "z")
    described = dataset_json(*RAMPS.values())
    cascade = OwnSpace(
        plans([1.0, 1.0, 1.0], (1, 0, 2), channels=3),
        "only",
        dataset_json("x", "y", "z"),
        student,
        described,
        {"case": files},
        {},
        (first, lambda image: torch.stack((torch.zeros(image.shape[1:]), image[0] - 186))),
    )
    image = cascade.see("case", properties, data.shape[1:]).image.numpy()
    assert len(image) == 4
    assert set(np.unique(image[3])) == {0, 1}
    inside = inner(image[:3])
    far = inside & (np.abs(image[0] - 186) > 2)
    assert far.sum() > 100
    np.testing.assert_array_equal(image[3][far], image[0][far] > 186)


def test_images_that_cannot_be_used(tmp_path):
    files = ramps(tmp_path, FLIPPED)
    student = plans([2.0, 2.0, 2.0])
    _, properties = preprocessed(student, files, dataset_json(*RAMPS.values()))
    space = space_of(plans([1.0, 1.0, 1.0]), student, files[:1], *RAMPS.values())
    with pytest.raises(KDError, match="1 channels, expected 4 or more"):
        space.see("case", properties, (4, 4, 4))
    Path(files[0]).write_bytes(b"no image")
    with pytest.raises(KDError, match="case_0000.nii.gz cannot be read: "):
        space_of(plans([1.0, 1.0, 1.0]), student, files[:1], "x").see("case", properties, (4, 4, 4))
    with pytest.raises(KDError, match=r"reads images with NaturalImage2DIO .* the student's images end with .nii.gz"):
        space_of(plans([1.0, 1.0], reader="NaturalImage2DIO"), student, files, "x")


def test_channels_are_matched_by_name():
    student = {"0": "T1", "1": "T2"}
    assert match_channels({"0": "t2", "1": "T1"}, student, {}) == [1, 0]
    assert match_channels({"0": "MRI"}, student, {"MRI": "T2"}) == [1]
    with pytest.raises(KDError, match=r"the student's images \(T1, T2\) have no channel CT.*--channels"):
        match_channels({"0": "CT"}, student, {})
    with pytest.raises(KDError, match="the teacher has no channel PET, only T1"):
        match_channels({"0": "T1"}, student, {"PET": "T2"})
