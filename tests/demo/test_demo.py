import json

import matplotlib.image
import pytest

from nnunetv2_kd.cli.main import main
from nnunetv2_kd.demo.run import DATA, MODELS, write_options
from tests.conftest import World


def test_bundled_data_are_whole_and_attributed():
    dataset_json = json.loads((DATA / "dataset.json").read_text())
    for part, count in (("Tr", dataset_json["numTraining"]), ("Ts", 8)):
        images = {f.name.removesuffix("_0000.nii.gz") for f in (DATA / f"images{part}").iterdir()}
        labels = {f.name.removesuffix(".nii.gz") for f in (DATA / f"labels{part}").iterdir()}
        assert images == labels
        assert len(images) == count
    assert "CC-BY-SA 4.0" in (DATA / "ATTRIBUTION.md").read_text()
    assert sum(f.stat().st_size for f in DATA.rglob("*")) < 3e6


def test_students_train_alike(tmp_path):
    """Alone and distilled: the same options, so the same iterations, schedule and seed."""
    _, alone, distilled = MODELS
    options = [write_options(model, tmp_path, 3, smoke=False).read_text() for model in (alone, distilled)]
    assert options[0] == options[1]
    assert alone.plans == distilled.plans


def test_a_folder_in_use_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("precious")
    assert main(["demo", "-o", str(tmp_path)]) == 1
    assert "is not empty and was left alone" in capsys.readouterr().err
    assert [f.name for f in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.commands
def test_demo_from_start_to_end(tmp_path):
    output = tmp_path / "with a space"
    done = World(tmp_path).run("nnUNetv2_kd", "demo", "--smoke", "-o", output, COLUMNS="160")
    for words in (
        "teacher",
        "student alone",
        "student distilled",
        "Dice Anterior",
        "Dice Posterior",
        "GFLOPs/patch",
        "ms/case",
    ):
        assert words in done.stdout
    rows = json.loads((output / "results.json").read_text())
    assert [row["model"] for row in rows] == [model.name for model in MODELS]
    for row, model in zip(rows, MODELS, strict=True):
        summary = json.loads((model.predictions(output) / "summary.json").read_text())
        assert row["mean_dice"] == summary["foreground_mean"]["Dice"]
        assert row["ms_per_case"] > 0
    assert rows[0]["params"] > 3 * rows[1]["params"] == 3 * rows[2]["params"]
    assert matplotlib.image.imread(output / "comparison.png").shape[2] in (3, 4)
