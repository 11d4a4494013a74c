"""The contract that every method keeps, checked through the object that training uses."""

from nnunetv2_kd.methods import OWN_METHODS
from nnunetv2_kd.testing import method_contract


@method_contract(
    *(
        method() if "stages" not in method.model_fields else method(stages=("encoder.0", "decoder.0"))
        for method in OWN_METHODS
    )
)
def test_contract(check):
    check()
