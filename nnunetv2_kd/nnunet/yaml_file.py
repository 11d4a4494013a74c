"""Read options files from any source: YAML within limits, so that a hostile or broken file is refused at once, with a
short message."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

LARGEST = 1 << 20  # size of a file in bytes
MOST_VALUES, DEEPEST = 20_000, 50  # after every alias is replaced by its value
LONGEST_NUMBER = 400  # length of a number in characters


class NotReadableError(ValueError):
    """The problem of a file, with the line if it is known."""


def read_yaml(file: Path) -> tuple[Any, yaml.Node | None]:
    """The content of a file, and its nodes, which have line numbers.

    Raises:
        OSError: if it cannot be read.
        NotReadableError: if it is too large, is not YAML, or has a key twice.
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
        raise NotReadableError(f"it is not UTF-8 text (byte {error.start})") from error
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "
        raise NotReadableError(f"{line}{(error.problem or 'no YAML')[:200]}") from error
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        if isinstance(error, NotReadableError):
            raise
        raise NotReadableError(str(error).splitlines()[0][:200] if str(error) else "no YAML") from error


def _check_depth(text: str) -> None:
    """Check the nesting before PyYAML parses the text, because PyYAML recurses at every level. Brackets are counted;
    blocks are nested as deep as their indentation."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent))
        depth -= isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent))
        if depth > DEEPEST:
            raise NotReadableError(f"line {_line(event)}: more than {DEEPEST} nested levels")


def _check_nodes(root: yaml.Node) -> None:
    """Raise `NotReadableError` for the first problem."""
    for seen, (node, depth) in enumerate(_walk(root, 0), start=1):
        line = _line(node)
        if seen > MOST_VALUES:
            raise NotReadableError(f"line {line}: more than {MOST_VALUES} values after every alias is replaced")
        if depth > DEEPEST:
            raise NotReadableError(f"line {line}: more than {DEEPEST} nested levels")
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
