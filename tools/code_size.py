"""Code lines and statements of the package, folder by folder, against the budget in pyproject.toml.

A code line is a line of a formatted file that is no docstring, comment or blank; a statement is one of the syntax tree.

    python tools/code_size.py            # the table
    python tools/code_size.py --files    # file by file, largest last
    python tools/code_size.py --check    # exit code 1 above the budget, or for a file of more than 400 lines
"""

from __future__ import annotations

import argparse
import ast
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 400  # lines of a file, all counted


def size(text: str) -> tuple[int, int]:
    """Code lines and statements of a module's text."""
    tree = ast.parse(text)
    docs: set[int] = set()
    statements = 0
    for node in ast.walk(tree):
        statements += isinstance(node, ast.stmt)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                docs.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines = enumerate(text.splitlines(), start=1)
    code = sum(1 for number, line in lines if number not in docs and line.strip() and not line.strip().startswith("#"))
    return code, statements


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", action="store_true", help="file by file")
    parser.add_argument("--check", action="store_true", help="exit code 1 above the budget")
    options = parser.parse_args()
    budget = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["detkit"]["code_lines"]
    table: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    sizes, long = [], []
    for path in sorted((ROOT / "detkit").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        code, statements = size(text)
        name = path.relative_to(ROOT / "detkit")
        sizes.append((code, statements, str(name)))
        if len(text.splitlines()) > LONGEST:
            long.append(str(name))
        folder = name.parts[0] if len(name.parts) > 1 else "(files of the package itself)"
        for key in (folder, "all"):
            row = table[key]
            row[0] += code
            row[1] += statements
            row[2] += 1
    if options.files:
        for code, statements, shown in sorted(sizes):
            print(f"{code:6} {statements:6}  {shown}")
    total = table.pop("all")
    print(f"{'lines':>6} {'statements':>10} {'files':>5}")
    for folder, row in sorted(table.items()):
        print(f"{row[0]:6} {row[1]:10} {row[2]:5}  {folder}")
    print(f"{total[0]:6} {total[1]:10} {total[2]:5}  in all; the budget is {budget} lines")
    for name in long:
        print(f"{name} has more than {LONGEST} lines: split it by topic")
    return int(options.check and (total[0] > budget or bool(long)))


if __name__ == "__main__":
    sys.exit(main())
