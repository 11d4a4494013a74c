import re
from collections import Counter
from html.parser import HTMLParser

import pytest
import torch

from nnunetv2_kd.leaderboard.board import make_boards
from nnunetv2_kd.leaderboard.page import to_page
from nnunetv2_kd.leaderboard.request import LeaderboardRequest
from nnunetv2_kd.leaderboard.worst_cases import featured_model, worst_cases
from tests.scored_models import eroded, record, shifted

STRANGE = "<img src=x onerror=alert(1)> & \"q\" 'x' $y$"
VOID = {"meta", "link", "input", "img", "br", "path", "use"}


class Page(HTMLParser):
    """Tags with attributes and text; refuses tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def strange(family):
    kd = record("nnUNetTrainerKDBaseline", note="</script><script>alert(1)</script>")
    family.add("nnUNetTrainerKDBaseline", eroded(3), plans_name=STRANGE, kd=kd)
    return family


def boards_of(results):
    return make_boards(LeaderboardRequest(["7"], torch.device("cpu")), lambda line: None)


def test_page_is_self_contained_and_well_formed(strange):
    text = to_page(boards_of(strange))
    page = Page(text)
    assert not re.search(r"""(src|href)=["']?(https?:|//)""", text)
    assert not re.search(r"@import|url\((?!#)", text)
    assert all(a.get("src", "").startswith("data:image/png;base64,") for a in page.all("img"))
    assert page.all("script") == [{}]
    ids = Counter(attributes["id"] for _, attributes in page.tags if "id" in attributes)
    assert [name for name, count in ids.items() if count > 1] == []
    for _, attributes in page.tags:
        for name in ("aria-labelledby", "data-for"):
            assert attributes.get(name) is None or attributes[name] in ids
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert page.all("html") == [{"lang": "en"}]


def test_names_are_escaped(strange):
    text = to_page(boards_of(strange))
    page = Page(text)
    assert STRANGE in "".join(page.words)
    assert all("onerror" not in attributes for _, attributes in page.tags)
    assert len(page.all("script")) == 1


def test_tables_can_be_read_by_a_screen_reader(strange):
    page = Page(to_page(boards_of(strange)))
    assert len(page.all("table")) == len(page.all("caption")) == 2
    assert {a["scope"] for a in page.all("th")} == {"col", "row"}
    assert [a["aria-sort"] for a in page.all("th") if "aria-sort" in a] == ["ascending"]
    assert all(a.get("alt") for a in page.all("img"))
    assert all(a["role"] == "img" and a["aria-label"] for a in page.all("svg"))
    assert len(page.all("h1")) == 1
    assert [a.get("hidden", "shown") for a in page.all("form")] == [None]  # useless without the script that shows it


def test_page_shows_everything(strange):
    words = " ".join(" ".join(Page(to_page(boards_of(strange))).words).split())
    for expected in (
        "Highest mean Dice",
        "KD · Small †",
        "teacher saw validation cases (fold 0: 5)",
        "SHA-256",
        "How stable the ranking is",
        "Worst cases of RegionKD · Small",
        "Add --time 5 to the command",
        "nnUNetv2_train 7 3d_fullres 0 -tr nnUNetTrainerRegionKD",
        "Outlines: a: orange",
    ):
        assert expected in words, expected


def test_worst_cases_are_the_worst(family):
    board = boards_of(family)[0]
    entry = featured_model(board)
    assert entry.model.trainer == "nnUNetTrainerRegionKD"
    pictures, why_none = worst_cases(board, entry)
    assert why_none == ""
    lowest = board.case_means.loc[entry.name].sort_values(kind="stable").index[:3]
    assert [picture.case for picture in pictures] == list(lowest)
    assert "image, truth, nnUNetTrainer · nnUNetPlans with Dice 1.000, KDBaseline · Small" in pictures[0].description


def test_without_images_there_are_no_pictures(family):
    (family.root / "raw").rename(family.root / "elsewhere")
    words = " ".join(Page(to_page(boards_of(family))).words)
    assert "No pictures: the images (nnUNet_raw, imagesTr) or the ground truth are not on this machine." in words


def test_a_model_of_stock_nnunet_is_in_the_plots(family):
    """A stock model that teaches no other is a kind of its own."""
    family.add("nnUNetTrainerOther", shifted(1))
    page = Page(to_page(boards_of(family)))
    assert len(page.all("svg")) == 2
    assert "nnU-Net" in page.words


def test_page_without_any_score(family):
    for summary in family.models.rglob("summary.json"):
        summary.unlink()
    words = " ".join(Page(to_page(boards_of(family))).words)
    assert "No model has a score yet." in words
    assert "not validated" in words
