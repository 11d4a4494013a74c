"""The table fits a terminal with 80 columns."""

from rich.console import Console

from nnunetv2_kd.benchmark.cost import ModelCost
from nnunetv2_kd.benchmark.run import Benchmark, BenchmarkRow
from nnunetv2_kd.benchmark.table import print_benchmark, short_names
from nnunetv2_kd.benchmark.timing import TimedModel

TEACHER, STUDENT = "nnUNetTrainer__nnUNetPlans__3d_fullres", "nnUNetTrainerRegionKD__nnUNetPlansSmall__3d_fullres"


def test_names_say_what_differs():
    assert short_names([TEACHER, STUDENT]) == {
        TEACHER: "nnUNetTrainer · nnUNetPlans",
        STUDENT: "RegionKD · nnUNetPlansSmall",
    }
    assert short_names([TEACHER]) == {TEACHER: "nnUNetTrainer"}
    assert short_names(["/some/folder", TEACHER])["/some/folder"] == "/some/folder"


def test_no_number_is_broken_in_a_narrow_terminal(capsys):
    rows = []
    for name, ms in ((TEACHER, 10234.0), (STUDENT, 987.0)):
        timed = TimedModel(None, mirroring=(True, False), runtime="openvino", precision="bf16")
        timed.milliseconds = {True: [[ms]], False: [[ms / 8]]}
        rows.append(BenchmarkRow(name, timed, ModelCost(params=1402297, gflops=9.61), 1234.0))
    found = Benchmark(rows, "AMD EPYC (1 thread)", ["case"], "of fold 0", 1)
    print_benchmark(found, Console(width=80))
    narrow = capsys.readouterr().out
    assert max(map(len, narrow.splitlines())) <= 80
    for cell in ("openvino bf16", "1.40 M", "10234", "987", "10.4", "faster*"):
        assert cell in narrow
    assert "9.61" not in narrow
    print_benchmark(found, Console(width=120))
    assert "9.61" in capsys.readouterr().out
