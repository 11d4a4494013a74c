"""nnU-Net's own commands with our trainers, on real cases."""

import pytest

pytestmark = pytest.mark.commands


def test_smoke(world):
    done = world.train("nnUNetTrainerRegionKD")
    print(done.stdout)
