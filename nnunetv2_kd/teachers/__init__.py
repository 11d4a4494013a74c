"""Teachers: find, load, check, freeze and run them."""

from nnunetv2_kd.teachers.find import Student, dataset_id, trained_models
from nnunetv2_kd.teachers.teacher import Teacher, TeacherRecord, load_teacher

__all__ = ["Student", "Teacher", "TeacherRecord", "dataset_id", "load_teacher", "trained_models"]
