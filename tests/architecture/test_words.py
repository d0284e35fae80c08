"""Docstrings, comments and messages are in plain technical English."""

from pathlib import Path

import pytest

from tests.architecture.words import fragments, private_words

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("detector", "platform", "experiments", "benchmarks", "tests")
EXCEPT = {Path(__file__).resolve(), Path(__file__).resolve().with_name("words.py")}
"""Files that hold the words because they are about them."""

ENFORCED = True
"""True once the tree is free of them."""


def files() -> list[Path]:
    return [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py")) if file not in EXCEPT]


@pytest.mark.skipif(not ENFORCED, reason="the tree is not yet free of them")
def test_docstrings_are_noun_phrases_or_imperatives():
    found = {str(file.relative_to(ROOT)): lines for file in files() if (lines := fragments(file))}
    assert found == {}


@pytest.mark.skipif(not ENFORCED, reason="the tree is not yet free of them")
def test_words_are_those_of_the_field():
    found = {str(file.relative_to(ROOT)): lines for file in files() if (lines := private_words(file))}
    assert found == {}


def test_the_tree_is_found():
    assert {"engine.py", "grid.py", "recipes.py", "rows.py", "conftest.py"} <= {file.name for file in files()}


@pytest.fixture
def written(tmp_path: Path):
    """A function that writes a module and returns its path."""

    def write(text: str) -> Path:
        path = tmp_path / "module.py"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("word", ["Of", "What", "How", "By", "Where", "Which", "Whether"])
def test_a_fragment_is_found_in_modules_classes_and_public_functions(written, word):
    docstring = f'"""{word} it is.\n\nMore.\n"""'
    inner = docstring.replace("\n", "\n    ")
    text = (
        f"{docstring}\n\n"
        f"class Box:\n    {inner}\n\n    def area(self):\n        {inner}\n\n"
        f"async def corners():\n    {inner}\n"
    )
    found = fragments(written(text))
    assert [line.partition(": expected")[0] for line in found] == ["1: the module", "6: Box", "18: corners", "12: area"]
    assert found[0].endswith(f"expected a noun phrase or an imperative, found '{word} it is.'")


@pytest.mark.parametrize(
    "text",
    [
        '"""Width of a box; what it is made of."""\n',
        '"""Offset of a box."""\n',
        '"""Bytes of a file."""\n',
        'def _private():\n    """Whether it may be short."""\n',
        "def undocumented(): ...\n",
    ],
)
def test_other_docstrings_pass(written, text):
    assert fragments(written(text)) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("x = 1  # the trunk of the network\n", "1: expected backbone, found 'trunk'"),
        ('"""Survivors of NMS."""\n', "1: expected kept pairs, found 'Survivors'"),
        ('raise ValueError(f"{x} is no axis")\n', "1: expected not a ..., or: expected ..., found ..., found 'is no'"),
        ('m = "Strangers"\n', "1: expected unknown ids, found 'Strangers'"),
        ('"""A list\nof sound\nimages."""\n', "1: expected verified images, found 'sound images'"),
        ('m = "12 images in all"\n', "1: expected the total, found 'in all'"),
        ("# offenders\n", "1: expected invalid entries, found 'offenders'"),
        ("def _tell_lost(): ...\n", "1: expected log_..., report_... or shorten, found the function '_tell_lost'"),
        ("def _few(): ...\n", "1: expected log_..., report_... or shorten, found the function '_few'"),
    ],
)
def test_a_private_word_is_found(written, text, found):
    assert private_words(written(text)) == [found]


@pytest.mark.parametrize(
    "text",
    [
        "# is no longer used\n",
        '"""The same in all runs."""\n',
        "trunk = 1\n",
        "def few_large_objects(): ...\n",
        "def teller(): ...\n",
    ],
)
def test_words_of_the_field_pass(written, text):
    assert private_words(written(text)) == []
