"""Hostile and broken options files are refused at once, with a short message."""

import time

import pytest

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.nnunet.yaml_file import LARGEST, NotReadableError, read_yaml
from nnunetv2_kd.trainers.options import read_options_file, resolve_options

BOMB = 'a: &a ["x","x","x","x","x","x","x","x","x"]\n' + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(7)
)
HOSTILE = {
    "alias bomb": (BOMB + "terms: *h\n", "after every alias is replaced"),
    "alias in itself": ("a: &a [*a]\n", "nested levels|after every alias|unhashable|recursive"),
    "brackets": ("[" * 5000, "nested levels"),
    "indentation": ("".join(f"{' ' * i}a:\n" for i in range(200)), "line 51: more than 50 nested levels"),
    "digits": ("epochs: " + "9" * 6000, "line 1: a number of 6000 digits"),
    "sexagesimal digits": ("epochs: " + ":".join(["59"] * 3000), "digits"),
    "twice": ("seed: 1\nterms: {}\nseed: 2\n", "line 3: seed is given twice, first in line 1"),
    "twice inside": ("teacher:\n  fold: 1\n  fold: 2\n", "line 3: fold is given twice, first in line 2"),
    "objects": ("a: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
    "no UTF-8": (b"\xff\xfe\xff", "not UTF-8 text"),
    "zero bytes": (b"a: \x00", "special characters|unacceptable|no YAML"),
    "large": (b"#" * (LARGEST + 1), "larger than 1 MiB"),
    "a list as key": ("? [1, 2]\n: 3\n", "a key must be a word"),
    "two documents": ("a: 1\n---\nb: 2\n", "but found another document"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_refused_at_once_and_shortly(tmp_path, name):
    content, message = HOSTILE[name]
    file = tmp_path / "options.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    started = time.perf_counter()
    with pytest.raises(KDError, match=message) as refusal:
        read_options_file(file)
    assert time.perf_counter() - started < 20
    assert len(str(refusal.value)) < 600
    assert str(file) in str(refusal.value)


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_an_empty_file_is_none(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    assert read_yaml(tmp_path / "a.yaml")[0] is None


def test_aliases_in_bounds_are_read(tmp_path):
    (tmp_path / "a.yaml").write_text("x: &x {weight: 1}\ny: *x\n")
    assert read_yaml(tmp_path / "a.yaml")[0] == {"x": {"weight": 1}, "y": {"weight": 1}}


def test_a_missing_file_is_an_oserror(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        read_yaml(tmp_path / "none.yaml")
    assert issubclass(NotReadableError, ValueError)


@pytest.mark.parametrize(
    "line", ["epochs: yes", "epochs: on", "seed: true", "ema: no", "mirroring: [yes]", "student: {width: on}"]
)
def test_yes_is_no_number(tmp_path, line):
    (tmp_path / "a.yaml").write_text(line)
    with pytest.raises(KDError, match="must not be true or false"):
        resolve_options({}, {}, tmp_path / "a.yaml")


@pytest.mark.parametrize("line", ["cpu_bfloat16: yes", "teacher: {trust: on}", "teacher: {trust_pickle: yes}"])
def test_yes_is_true_where_it_is_asked_for(tmp_path, line):
    (tmp_path / "a.yaml").write_text(line)
    options = resolve_options({}, {}, tmp_path / "a.yaml")
    assert options.cpu_bfloat16 or options.teacher.trust


@pytest.mark.parametrize("line", ["teacher: {folder: ~nobody_here/x}", "stored_teacher: ~nobody_here/x"])
def test_the_home_of_nobody(tmp_path, line):
    (tmp_path / "a.yaml").write_text(line)
    with pytest.raises(KDError, match="there is no home folder for ~nobody_here"):
        resolve_options({}, {}, tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "line", ["terms: {voxel_kl: {temperature: 1e-320}}", "combine: {tau: 1e-320}", "epochs: 1" + "0" * 300]
)
def test_numbers_that_a_training_cannot_use(tmp_path, line):
    (tmp_path / "a.yaml").write_text(line)
    with pytest.raises(KDError, match="must be at (least|most)") as refusal:
        resolve_options({}, {}, tmp_path / "a.yaml")
    assert len(str(refusal.value)) < 600


def test_many_problems_are_a_short_list(tmp_path):
    (tmp_path / "a.yaml").write_text("".join(f"key{i}: {'x' * 1000}\n" for i in range(500)))
    with pytest.raises(KDError, match="and 480 more") as refusal:
        resolve_options({}, {}, tmp_path / "a.yaml")
    assert len(str(refusal.value)) < 20_000


def test_plans_name_no_python_file(tmp_path, monkeypatch):
    mark = tmp_path / "RAN"
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    with pytest.raises(KDError, match="names methods in Python files, which were not run"):
        resolve_options({}, {"kd": {"terms": {f"{tmp_path / 'evil.py'}:Term": {}}}})
    assert not mark.exists()
