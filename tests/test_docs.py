"""The site builds without a warning, links lead to files and headings that exist, and papers can be cited."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import nnunetv2_kd

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#([^)\s]+))?\)")
PAGES = ["README.md", "CONTRIBUTING.md", "SECURITY.md"]


def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "shrink_plans" in (tmp_path / "site" / "api" / "index.html").read_text()


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings_that_are_there(page):
    for target, heading in LINK.findall((ROOT / page).read_text()):
        if target.startswith("http"):
            continue
        file = ROOT / target
        assert file.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert heading in {anchor(found) for found in headings}, f"{target}#{heading}"


def test_the_index_leads_to_every_page():
    linked = {target for target, _ in LINK.findall((ROOT / "docs" / "index.md").read_text())}
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"} == linked


def test_every_paper_of_the_formulas_can_be_cited():
    """CITATION.cff is of this version, and has every arXiv id and DOI from docs/formulas.md."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == nnunetv2_kd.__version__
    cited = " ".join(f"{paper.get('doi', '')} {paper.get('url', '')}" for paper in citation["references"])
    formulas = (ROOT / "docs" / "formulas.md").read_text()
    papers = re.findall(r"arXiv\s+(\d{4}\.\d{5})|doi\s+(10\.[\w./-]+\w)", formulas)
    assert len(papers) > 15
    assert not [arxiv or doi for arxiv, doi in papers if (arxiv or doi) not in cited]
