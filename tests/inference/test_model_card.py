"""Whatever a stranger wrote into a dataset.json is only text on a model card."""

from nnunetv2_kd.inference.model_card import as_markdown

EVIL = "<script>alert(1)</script> | [x](javascript:alert(1)) `code`"
CARD = {
    "task": {
        "dataset": "Dataset007_X",
        "description": EVIL,
        "channels": {"0": EVIL},
        "labels": {EVIL: 1},
        "training_cases": 3,
        "data_licence": EVIL,
    },
    "model": {"name": "T__P__2d", "network": EVIL, "parameters": 1000},
    "distillation": {"note": "```\n<script>"},
    "export": {"format": "onnx", "precision": "f32", "bytes": {"a": 1}},
    "quality": {"cases": 1, "of": "given images", "dice": {EVIL: 0.5}, "nsd_1mm": {EVIL: None}},
    "speed": {"ms_per_case_pytorch": 1.0, "ms_per_case_export": 1.0, "processor": "p", "note": "n"},
    "versions": {"python": "3"},
    "intended_use": EVIL,
    "licence": EVIL,
}


def test_no_markup_reaches_a_model_card():
    page = as_markdown(CARD)
    before, _, rest = page.partition("```json")
    record, _, after = rest.partition("```")
    assert "<script>" not in before + after
    assert "](javascript" not in (before + after).replace("\\]", "")  # where it is escaped
    assert "`" not in record
    rows = [line for line in before.splitlines() if line.startswith("| ") and "script" in line]
    assert all(line.replace("\\|", "").count("|") in (3, 4) for line in rows)
