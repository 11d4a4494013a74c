"""Students: smaller plans, and what they cost."""

from nnunetv2_kd.students.cost import Cost, count_params, in_words, network_cost
from nnunetv2_kd.students.shrink import made_from, planned_configurations, shrink_plans
from nnunetv2_kd.students.size import student_plans, width_for

__all__ = [
    "Cost",
    "count_params",
    "in_words",
    "made_from",
    "network_cost",
    "planned_configurations",
    "shrink_plans",
    "student_plans",
    "width_for",
]
