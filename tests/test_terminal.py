import io
import sys

from nnunetv2_kd.terminal import allow_any_character, plain_console


def test_an_ascii_terminal_gets_question_marks(monkeypatch):
    buffer = io.BytesIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(buffer, encoding="ascii", write_through=True))
    allow_any_character()
    print("mean ± SD – †")
    plain_console().print("✓ –")
    plain_console(stderr=True).print("×")
    assert buffer.getvalue().decode().split("\n")[:1] == ["mean ? SD ? ?"]
    assert b"\xe2" not in buffer.getvalue()


def test_a_stream_of_another_kind_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    allow_any_character()
    print("–")


def test_names_are_no_markup(capsys):
    from rich.table import Table

    table = Table("[red]a[/red]", title="[/x]")
    table.add_row("[/nothing]")
    plain_console().print(table)
    plain_console().print("Written: /a/[b]/c[/x]")
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("[red]a[/red]", "[/nothing]", "/a/[b]/c[/x]"))
