"""The program in C++ that docs/portable.md shows."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "portable.md"
COMPILER = shutil.which("g++")


def compiles(text: str) -> subprocess.CompletedProcess:
    line = [str(COMPILER), "-std=c++17", "-fsyntax-only", "-x", "c++", "-"]
    return subprocess.run(line, input=text, capture_output=True, text=True)


@pytest.mark.skipif(COMPILER is None, reason="no g++")
def test_it_compiles():
    if compiles("#include <onnxruntime_cxx_api.h>").returncode != 0:
        pytest.skip("ONNX Runtime's headers are not installed")
    programs = re.findall(r"```cpp\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(programs) == 1
    done = compiles(programs[0])
    assert done.returncode == 0, done.stderr
