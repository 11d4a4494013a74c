"""Teachers: find, load, check, freeze and run them."""

from nnunetv2_kd.teachers.ensemble import Ensemble, check_different
from nnunetv2_kd.teachers.find import Student, dataset_id, trained_models
from nnunetv2_kd.teachers.teacher import Answer, Teacher, TeacherRecord, load_teacher

__all__ = [
    "Answer",
    "Ensemble",
    "Student",
    "Teacher",
    "TeacherRecord",
    "check_different",
    "dataset_id",
    "load_teacher",
    "trained_models",
]
