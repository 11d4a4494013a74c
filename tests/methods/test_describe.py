"""The docs list all methods."""

from pathlib import Path

from nnunetv2_kd.methods import OWN_METHODS
from nnunetv2_kd.methods.describe import methods_table

DOCS = Path(__file__).parents[2] / "docs" / "methods.md"


def test_the_docs_have_every_method_and_option():
    """If this fails, paste the output of `methods_table` into docs/methods.md."""
    assert methods_table(OWN_METHODS) in DOCS.read_text()


def test_every_method_has_a_recipe():
    recipes = " ".join(file.read_text() for file in (DOCS.parents[1] / "configs").glob("*.yaml"))
    assert [method.name for method in OWN_METHODS if f"{method.name}:" not in recipes] == []
