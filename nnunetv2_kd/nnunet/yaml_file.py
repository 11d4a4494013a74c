"""Options files, whoever wrote them: YAML within bounds, so that a hostile or broken one is refused at once and in few
words."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

LARGEST = 1 << 20  # bytes of a file
MOST_VALUES, DEEPEST = 20_000, 50  # once every alias stands for what it names
LONGEST_NUMBER = 400  # characters


class NotReadableError(ValueError):
    """What is wrong with a file, with the line where that is known."""


def read_yaml(file: Path) -> tuple[Any, yaml.Node | None]:
    """The content of a file, and its nodes, which know their lines.

    Raises:
        OSError: where it cannot be read.
        NotReadableError: where it is too large, no YAML, or gives a key twice.
    """
    with file.open("rb") as stream:
        content = stream.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise NotReadableError(f"it is larger than {LARGEST >> 20} MiB")
    try:
        text = content.decode()
        _check_depth(text)
        loader = yaml.SafeLoader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None, None
            _check_nodes(root)
            return loader.construct_document(root), root
        finally:
            loader.dispose()
    except UnicodeDecodeError as error:
        raise NotReadableError(f"it is no text in UTF-8 (byte {error.start})") from error
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "
        raise NotReadableError(f"{line}{(error.problem or 'no YAML')[:200]}") from error
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        if isinstance(error, NotReadableError):
            raise
        raise NotReadableError(str(error).splitlines()[0][:200] if str(error) else "no YAML") from error


def _check_depth(text: str) -> None:
    """Brackets in brackets are counted before PyYAML, which calls itself for each, is let at them; those of block style
    are as deep as their indentation."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent))
        depth -= isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent))
        if depth > DEEPEST:
            raise NotReadableError(f"line {_line(event)}: more than {DEEPEST} levels inside each other")


def _check_nodes(root: yaml.Node) -> None:
    """Raises `NotReadableError` for the first thing that is wrong."""
    for seen, (node, depth) in enumerate(_walk(root, 0), start=1):
        line = _line(node)
        if seen > MOST_VALUES:
            raise NotReadableError(f"line {line}: more than {MOST_VALUES} values, once every alias is put in its place")
        if depth > DEEPEST:
            raise NotReadableError(f"line {line}: more than {DEEPEST} levels inside each other")
        is_number = isinstance(node, yaml.ScalarNode) and node.tag.endswith((":int", ":float"))
        if is_number and len(node.value) > LONGEST_NUMBER:
            raise NotReadableError(f"line {line}: a number of {len(node.value)} digits")
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)


def _walk(node: yaml.Node, depth: int) -> Iterator[tuple[yaml.Node, int]]:
    """Every value, as often as it is named."""
    waiting = [(node, depth)]
    while waiting:
        node, depth = waiting.pop()
        yield node, depth
        if isinstance(node, yaml.MappingNode):
            waiting += [(child, depth + 1) for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += [(child, depth + 1) for child in node.value]


def _check_keys(node: yaml.MappingNode) -> None:
    first: dict[str, int] = {}
    for key, _ in node.value:
        line = _line(key)
        if not isinstance(key, yaml.ScalarNode):
            raise NotReadableError(f"line {line}: a key must be a word")
        if key.value in first:
            raise NotReadableError(f"line {line}: {key.value[:80]} is given twice, first in line {first[key.value]}")
        first[key.value] = line


def _line(part: yaml.Node | yaml.Event) -> int:
    return 1 + (part.start_mark.line if part.start_mark is not None else 0)
