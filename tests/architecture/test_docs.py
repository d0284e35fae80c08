"""README and docs/ name what exists: files, links, headings, commands and options."""

import dataclasses
import re
import types
import typing
from pathlib import Path

import pytest

from runyard import cli
from runyard.commandline.options import Options

ROOT = Path(__file__).resolve().parents[2]
FROZEN = ROOT / "tests" / "golden" / "command_line.txt"
MAX_README_LINES = 130

ADDED_FILE = re.compile(r"^--- /dev/null\n\+\+\+ b/(\S+)$", re.MULTILINE)
"""File that a patch adds: docs/extending.md names those of the tested examples."""

FOREIGN_COMMANDS = ("ray", "torchrun", "docker", "kubectl", "git", "pip", "export")
"""Programs whose options are not this project's."""

FOREIGN_OPTIONS = {"node-ip-address"}
"""Options of other programs that a text names without the program."""

FOLDERS = "detector|platform|experiments|cluster|benchmarks|tests|docs"
NAMED_FILE = re.compile(rf"(?<![\w/.-])((?:{FOLDERS})/[\w./-]*)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
OPTION = re.compile(r"(?<![\w-])--([a-z][\w.-]*\w)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
SCRIPT = re.compile(r"(?:^|[\s\"'])((?:experiments|benchmarks)/\w+\.py)")
RUNYARD = re.compile(r"(?:^|[\s/])runyard (\w+)(?: |$)")
MODULE = re.compile(r"python -m ([\w.]+)")
ASSIGNMENTS = re.compile(r"^(?:[A-Z_]+=\S* )+")
MAKE = re.compile(r"(?:^|\s)make ([a-z]+)")


def pages() -> list[Path]:
    """Pages that a user reads."""
    top = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CITATION.cff")]
    return [*top, *sorted((ROOT / "docs").glob("*.md")), ROOT / "cluster" / "README.md", ROOT / "benchmarks/NOTES.md"]


def command_pages() -> list[Path]:
    """Pages whose options and commands are today's; a changelog also names earlier ones."""
    return [page for page in pages() if page.name not in ("CHANGELOG.md", "CITATION.cff")]


def missing_links(page: Path) -> list[str]:
    """Relative links of a page without a file or without the heading that they name."""
    missing = []
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        name, _, heading = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if "://" in link:
            continue
        if not target.exists() or (heading and heading not in anchors(target)):
            missing.append(link)
    return missing


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def missing_files(page: Path) -> list[str]:
    """Paths from the repository's root that a page names and that do not exist; patterns have to match a file."""
    examples = (ROOT / "tests" / "extending").glob("*.patch") if page.name == "extending.md" else ()
    added = {name for patch in examples for name in ADDED_FILE.findall(patch.read_text())}
    found = []
    for name in NAMED_FILE.findall(page.read_text()):
        name = name.rstrip(".")
        if name not in added and not (ROOT / name).exists():
            found.append(name)
    return found


def commands(text: str) -> list[str]:
    """Command lines in fences and inline code, one string each, without environment variables before them."""
    lines = [line for _, block in FENCE.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    return [ASSIGNMENTS.sub("", line.strip()) for line in [*lines, *INLINE.findall(FENCE.sub("", text))]]


def fields_as_options(config: type, prefix: str = "", flat: tuple[str, ...] = ()) -> set[str]:
    """Options of a dataclass as tyro names them; the members of the `flat` fields have no prefix."""
    options: set[str] = set()
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        kinds = typing.get_args(hints[field.name]) if isinstance(hints[field.name], types.UnionType) else ()
        members = [kind for kind in (kinds or (hints[field.name],)) if dataclasses.is_dataclass(kind)]
        name = f"{prefix}{field.name}".replace("_", "-")
        if not members:
            head, _, last = name.rpartition(".")
            options |= {name, f"{head}.no-{last}" if head else f"no-{last}"}
        for member in members:
            options |= fields_as_options(member, "" if field.name in flat else f"{prefix}{field.name}.")
    return options


def known_options() -> dict[str, set[str]]:
    """Options without dashes, by command: of the frozen file, and of the dataclasses that the parsers are made from."""
    known: dict[str, set[str]] = {}
    for section in re.split(r"^\[", FROZEN.read_text(), flags=re.MULTILINE)[1:]:
        name, _, body = section.partition("]\n")
        known[name.removesuffix(" --rows")] = set(re.findall(r"--([\w.-]+)", body)) | known.get(name, set())
    sweep = fields_as_options(Options, flat=("source", "runtime")) | {"row", "help"}
    for script in (ROOT / "experiments").glob("*.py"):
        if "Options" in script.read_text() and script.name != "demo.py":
            known[f"experiments/{script.name}"] = known.get(f"experiments/{script.name}", set()) | sweep
    for command in ("Evaluate", "Detect", "Table", "Sync", "Ui"):
        name = f"runyard {command.lower()}"
        known[name] = known.get(name, set()) | fields_as_options(getattr(cli, command))
    known["runyard doctor"] |= fields_as_options(cli.Doctor, flat=("source",))
    return known


def is_foreign(command: str) -> bool:
    """True for a command line of another project's program, at any path."""
    words = command.split()
    return bool(words) and words[0].rpartition("/")[2] in FOREIGN_COMMANDS


def program_of(command: str) -> str | None:
    """The section of the frozen file that a command line belongs to; None where it names no program of ours."""
    if module := MODULE.search(command):
        return f"python -m {module[1]}"
    if is_foreign(command) and "experiments/" not in command:
        return None
    if script := SCRIPT.search(command):
        return "python -m benchmarks.gpu" if script[1] == "benchmarks/gpu.py" else script[1]
    if command.startswith("make bench"):
        return "python -m benchmarks"
    if command.startswith("make ui"):
        return "runyard ui"
    subcommand = RUNYARD.search(command)
    return f"runyard {subcommand[1]}" if subcommand else None


def options_of(command: str, program: str) -> list[str]:
    """Options that a command line gives to a program of ours, not to what starts it."""
    given = command.rpartition(program)[2] if program in command else command
    return [option for option in OPTION.findall(given.partition(" > ")[0])]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= MAX_README_LINES


def test_the_readme_links_to_every_page():
    text = (ROOT / "README.md").read_text()
    pages_in_docs = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")}
    assert {page for page in pages_in_docs if f"]({page})" not in text} == set()


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_named_files_exist(page):
    assert missing_links(page) == []
    assert missing_files(page) == []


@pytest.mark.parametrize("page", command_pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_option_exists(page):
    text = page.read_text()
    known = known_options()
    everywhere = set().union(*known.values())
    unknown = []
    for command in commands(text):
        program = program_of(command)
        if program is not None:
            given = options_of(command, program)
            unknown += [f"{program}: --{option}" for option in given if option not in known.get(program, set())]
        elif not is_foreign(command):
            given = OPTION.findall(command)
            unknown += [f"--{option}" for option in given if option not in everywhere | FOREIGN_OPTIONS]
    assert unknown == []


@pytest.mark.parametrize("page", command_pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_make_target_exists(page):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = {target for command in commands(page.read_text()) for target in MAKE.findall(command)}
    assert named - targets == set()


def test_the_commands_of_the_readme_are_found():
    programs = {program_of(command) for command in commands((ROOT / "README.md").read_text())}
    assert {"experiments/coco_main.py", "runyard evaluate", "python -m benchmarks.gpu", "runyard ui"} <= programs


def test_a_broken_page_is_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One\n[a](missing.md) [b](#one) [c](#two) [d](https://example.org/x) see `detector/missing.py`\n")
    assert missing_links(page) == ["missing.md", "#two"]
    assert missing_files(page) == ["detector/missing.py"]
    known = known_options()
    command = "experiments/coco_main.py --data /data/coco --no-such-option 1 > spec.json"
    program = program_of(command)
    assert program == "experiments/coco_main.py"
    assert [option for option in options_of(command, program) if option not in known[program]] == ["no-such-option"]
    assert "fpn-channels" not in known[program]
    assert {"model.fpn-channels", "no-check-images", "rows", "row", "test-split"} <= known[program]
