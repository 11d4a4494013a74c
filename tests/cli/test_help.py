"""--help appears at once, because it imports nothing slow."""

import importlib
import subprocess
import sys

import pytest

from nnunetv2_kd.cli.arguments import build_parser
from nnunetv2_kd.cli.main import main

OURS = {"", ".choices", ".cli", ".cli.arguments", ".cli.main", ".errors", ".interruption", ".version"}
SHOWN = """
import sys
before = set(sys.modules)  # what installed packages bring along by themselves is not ours
from nnunetv2_kd.cli.main import main
for arguments in ({commands}):
    try:
        main(arguments)
    except SystemExit as end:
        assert end.code == (0 if arguments else 2), end.code
print(*sorted(set(sys.modules) - before), file=sys.stderr)
"""


def commands() -> list[str]:
    (subparsers,) = (action for action in build_parser()._actions if action.dest == "command")
    return list(subparsers.choices)


def test_help_imports_only_argparse_and_the_arguments():
    shown = [[], ["--help"], ["--version"], *([command, "-h"] for command in commands())]
    code = SHOWN.format(commands=", ".join(map(repr, shown)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported = done.stderr.splitlines()[-1].split()
    own_names = {*sys.stdlib_module_names, "__mp_main__"}  # multiprocessing's second name of the main module
    outside = {name for name in imported if name.split(".")[0] not in own_names}
    assert outside == {f"nnunetv2_kd{name}" for name in OURS}


@pytest.mark.parametrize("command", commands())
def test_every_command_has_its_module(command, capsys):
    module = importlib.import_module(f"nnunetv2_kd.cli.{command.replace('-', '_')}")
    assert callable(module.run)
    with pytest.raises(SystemExit) as ended:
        main([command, "-h"])
    assert ended.value.code == 0
    assert f"usage: nnUNetv2_kd {command}" in capsys.readouterr().out


def test_without_arguments_the_commands_are_listed(capsys):
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2  # as argparse ends where something is missing
    message = capsys.readouterr().err
    assert "usage: nnUNetv2_kd" in message
    for command in commands():
        assert f"    {command}" in message


@pytest.mark.parametrize("arguments", [["--nothing"], ["plan", "-d", "1", "--nothing"], ["nothing"]])
def test_what_is_unknown_is_an_error(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "nothing" in capsys.readouterr().err
