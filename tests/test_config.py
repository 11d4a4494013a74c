from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nnunetv2_kd.config import Schedule, parse_budget
from nnunetv2_kd.errors import KDError
from nnunetv2_kd.trainers.options import Options, options_of_environment, resolve_options
from nnunetv2_kd.trainers.schedule import factor_at

RECIPES = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.fixture
def write(tmp_path):
    def write(content):
        file = tmp_path / "options.yaml"
        file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return file

    return write


def test_there_are_recipes():
    assert {"emkd.yaml", "logits.yaml", "region.yaml"} <= {recipe.name for recipe in RECIPES}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_every_recipe_loads_and_is_commented(recipe):
    resolve_options({}, {}, recipe)
    assert recipe.read_text().startswith("#")


def test_precedence_is_file_plans_defaults(write):
    defaults = {"terms": {"voxel_kl": {}}, "epochs": 1, "seed": 1}
    plans = {"kd": {"epochs": 2, "seed": 2}}
    options = resolve_options(defaults, plans, write({"seed": 3}))
    assert (options.seed, options.epochs) == (3, 2)
    assert list(options.active_terms()) == ["voxel_kl"]


def test_terms_of_the_file_replace_the_defaults_whole(write):
    options = resolve_options({"terms": {"voxel_kl": {}}}, {}, write({"terms": {"region_kl": {}}}))
    assert list(options.active_terms()) == ["region_kl"]


def test_an_empty_file_changes_nothing(write):
    assert resolve_options({"epochs": 4}, {}, write("")).epochs == 4


def test_a_term_without_weight_is_not_computed():
    assert Options.model_validate({"terms": {"voxel_kl": {"weight": 0}}}).active_terms() == {}


def test_every_problem_is_reported_at_once(write):
    file = write(
        {
            "terms": {
                "voxel_kl": {"weight": -1},
                "region_kl": {"temperature": float("nan")},
                "region_afinity": {},
                "importance_map": {"stages": ["bottleneck"]},
            },
            "epochs": 0,
            "student": {"width": 1.5},
        }
    )
    with pytest.raises(KDError) as caught:
        resolve_options({}, {}, file)
    message = str(caught.value)
    assert str(file) in message
    for part in (
        "terms.voxel_kl.weight",
        "terms.region_kl.temperature",
        "terms.region_afinity",
        "unknown stage 'bottleneck'",
        "epochs",
        "student.width",
        "found -1",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("terms: [", "not valid YAML"),
        ("just words", "must hold keys"),
        ({"student": {"width": 0.5, "params": "1M"}}, "give one of width, params, flops, features and latency"),
        ({"student": {"params": "small"}}, "expected a size"),
        ({"teacher": {"folder": "/a", "trainer": "nnUNetTrainer"}}, "by folder or by trainer"),
        ({"schedule": {"warmup": 0.5, "decay_from": 0.2}}, "must not come before"),
        ({"stored_teacher": "fold_0", "teacher": {"fold": 0}}, "a stored teacher is not run: remove teacher"),
        ({"stored_teacher": "fold_0", "combine": {"rule": "region"}}, "a store of several teachers is their mean"),
        ({"stored_teacher": " "}, "expected the name or folder of a store"),
        ({"terms": {"region_affinity": {"stages": ["encoder.0", "encoder.0"]}}}, "named twice"),
        ({"terms": {"region_affinity": {"stages": []}}}, "at least 1 item"),
        ({"cpu_speed": "fast"}, "cpu_speed: must be 'measure', 'float32'"),
        ({"cpu_speed": "measure", "cpu_bfloat16": True}, "give cpu_bfloat16 or cpu_speed, not both"),
    ],
)
def test_bad_files(write, content, expected):
    with pytest.raises(KDError, match=expected):
        resolve_options({}, {}, write(content))


def test_missing_file(tmp_path):
    with pytest.raises(KDError, match="No such file"):
        resolve_options({}, {}, tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0.5M", (5e5, False)), ("120k", (1.2e5, False)), (0.1, (0.1, True)), ("20G", (2e10, False)), (300, (300, False))],
)
def test_parse_budget(text, expected):
    assert parse_budget(text) == expected


@pytest.mark.parametrize("text", ["", "M", "-1", "0", "1X", None])
def test_parse_budget_refuses(text):
    with pytest.raises(ValueError, match="expected a size"):
        parse_budget(text)


def test_schedule_closed_form():
    schedule = Schedule(warmup=0.2, decay_from=0.6, final=0.5)
    assert [factor_at(p, schedule) for p in (0, 0.1, 0.2, 0.6, 0.8, 1.0)] == pytest.approx([0, 0.5, 1, 1, 0.75, 0.5])
    assert {factor_at(p / 10, Schedule()) for p in range(11)} == {1.0}


@given(progress=st.floats(0, 1), bounds=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted), final=st.floats(0, 1))
def test_factor_is_between_0_and_1(progress, bounds, final):
    assert 0 <= factor_at(progress, Schedule(warmup=bounds[0], decay_from=bounds[1], final=final)) <= 1


def test_emkd_is_not_faded_out_by_the_trainers_own_schedule():
    from nnunetv2_kd.trainers import nnUNetTrainerRegionKD

    recipe = Path(__file__).parents[1] / "configs" / "emkd.yaml"
    options = resolve_options(nnUNetTrainerRegionKD.default_options, {}, recipe)
    assert {factor_at(p / 10, options.schedule) for p in range(11)} == {1.0}
    weights = {name: term.weight for name, term in options.active_terms().items()}
    assert weights == {"voxel_kl": 0.1, "importance_map": 0.9, "region_affinity": 0.9}
    assert options.terms["voxel_kl"].temperature == 4


def test_the_region_recipe_is_the_trainers_default():
    from nnunetv2_kd.trainers import nnUNetTrainerRegionKD

    recipe = Path(__file__).parents[1] / "configs" / "region.yaml"
    assert resolve_options({}, {}, recipe) == resolve_options(nnUNetTrainerRegionKD.default_options, {})


def test_problems_of_an_options_file_name_its_lines_in_plain_words(tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text(
        "# mine\nepoch: 5\nseed: 1.5\nteacher:\n  fold: two\n  trainer: 7\nterms:\n  region_kl:\n    weight: -1\n"
        "schedule: {warmup: 2}\nsave_every: 0\nteachers: 3\n"
    )
    with pytest.raises(KDError) as error:
        resolve_options({}, {}, file)
    reported = str(error.value)
    for line in (
        f"The distillation options in {file} cannot be used:",
        "line 2, epoch: unknown key; did you mean epochs? (found 5)",
        "line 3, seed: must be a whole number (found 1.5)",
        "line 6, teacher.trainer: must be text (found 7)",
        "line 9, terms.region_kl.weight: must be at least 0 (found -1",
        "line 10, schedule.warmup: must be at most 1 (found 2)",
        "line 11, save_every: must be at least 1 (found 0)",
        "line 12, teachers: must be a list (found 3)",
    ):
        assert line in reported
    assert "Input should" not in reported


def test_name_and_seed_of_the_environment_win(tmp_path, monkeypatch):
    file = tmp_path / "options.yaml"
    file.write_text("name: of_the_file\nseed: 1\n")
    monkeypatch.setenv("nnUNet_kd_name", "mine")
    monkeypatch.setenv("nnUNet_kd_seed", "2")
    options = resolve_options({}, {}, file, options_of_environment())
    assert (options.name, options.seed) == ("mine", 2)
    monkeypatch.setenv("nnUNet_kd_seed", "two")
    with pytest.raises(KDError, match=r"nnUNet_kd_name and nnUNet_kd_seed cannot.*\n.*seed: must be a whole number"):
        resolve_options({}, {}, file, options_of_environment())
