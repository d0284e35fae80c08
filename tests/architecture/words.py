"""A lint of words: docstrings in the form of the house style, the field's standard terms in place of private ones."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

FRAGMENTS = ("Of", "What", "How", "By", "Where", "Which", "Whether")
"""First words that make a fragment of a docstring: say the noun, or the imperative."""

PRIVATE_WORDS = {
    r"\btrunks?\b": "backbone",
    r"\bsurvivors?\b": "kept pairs",
    r"\bstrangers?\b": "unknown ids",
    r"\boffenders?\b": "invalid entries",
    r"\btwins?\b": "duplicates",
    r"\bsound images?\b": "verified images",
    r"\bthe words of\b": "the plain form",
    r"\bwhoever\b": "the plain form",
    r"\bin all(?=[.,;:)]|$)": "the total",
    r"\bthere is none\b": "the plain form",
    r"\bis no (?!longer\b)": "not a ..., or: expected ..., found ...",
}
PRIVATE_NAMES = re.compile(r"_?(?:tell|told)(?:_.*)?|_few")
"""Names of functions: say merge_..., log_..., report_..., shorten instead."""


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """Line, name and docstring of the module, of every class and of every public function."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        name = getattr(node, "name", "the module")
        text = ast.get_docstring(node)
        if text and (isinstance(node, ast.Module | ast.ClassDef) or not name.startswith("_")):
            yield getattr(node, "lineno", 1), name, text


def texts(source: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of every comment and of every string, docstrings and messages among them."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def fragments(file: Path) -> list[str]:
    """One line for each docstring that begins as a fragment."""
    begins = re.compile(rf"(?:{'|'.join(FRAGMENTS)})\b")
    tree = ast.parse(file.read_text(), filename=str(file))
    return [
        f"{line}: {name}: expected a noun phrase or an imperative, found {text.splitlines()[0]!r}"
        for line, name, text in docstrings(tree)
        if begins.match(text)
    ]


def private_words(file: Path) -> list[str]:
    """One line for each private word in a comment or a string, and for each function named by one."""
    source = file.read_text()
    tree = ast.parse(source, filename=str(file))
    found = set()
    for line, text in texts(source, tree):
        # Lines of a paragraph are one text: a phrase may be wrapped.
        joined = re.sub(r"\s*\n\s*#?\s*(?=\S)", " ", text)
        for pattern, instead in PRIVATE_WORDS.items():
            found |= {
                (line, f"expected {instead}, found {match[0].strip()!r}")
                for match in re.finditer(pattern, joined, re.I)
            }
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and PRIVATE_NAMES.fullmatch(node.name):
            found.add((node.lineno, f"expected log_..., report_... or shorten, found the function {node.name!r}"))
    return [f"{line}: {problem}" for line, problem in sorted(found)]
