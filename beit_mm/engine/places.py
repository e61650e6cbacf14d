"""Where in its files a config says something: file and line of a dotted path, for messages."""

import ast
import os
from pathlib import Path


def place_of(path: str | Path, dotted: str) -> str:
    """`path, line 12` of the last place in a config file, or in its bases, that gives `a.b[0].c` a value.

    Where that cannot be found (computed values, overrides on the command line): the path alone.
    """
    parts = dotted.replace('[', '.').replace(']', '').split('.')
    found = _search(Path(path), parts)
    return f'{os.path.normpath(found[0])}, line {found[1]}' if found else str(path)


def _search(path: Path, parts: list[str]) -> tuple[Path, int] | None:
    try:
        body = ast.parse(path.read_text()).body
    except (OSError, SyntaxError, ValueError):
        return None
    assigned = {
        target.id: node
        for node in body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    node = assigned.get(parts[0])
    if node is not None:
        line = _line(node.value, parts[1:]) if len(parts) > 1 else node.lineno
        if line:
            return path, line
    bases = assigned.get('_base_')
    names = [c.value for c in ast.walk(bases.value) if isinstance(c, ast.Constant)] if bases is not None else []
    for name in names:
        if isinstance(name, str) and '::' not in name:
            found = _search(path.parent / name, parts)
            if found:
                return found
    return None


def _line(node: ast.AST, parts: list[str]) -> int | None:
    """The line of what is below a dict(...), {...} or [...] under these keys and indices."""
    head, *rest = parts
    below: dict[str, tuple[ast.AST, int]] = {}
    if isinstance(node, ast.Call):
        below = {keyword.arg: (keyword.value, keyword.lineno) for keyword in node.keywords if keyword.arg}
    elif isinstance(node, ast.Dict):
        keys = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
        below = {str(key): (value, value.lineno) for key, value in zip(keys, node.values)}
    elif isinstance(node, (ast.List, ast.Tuple)):
        below = {str(i): (value, value.lineno) for i, value in enumerate(node.elts)}
    if head not in below:
        return None
    value, line = below[head]
    return _line(value, rest) if rest else line
