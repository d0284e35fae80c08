"""Every option of every command, read from the commands' own parsers.

    python tests/golden/command_line.py > tests/golden/command_line.txt

prints one section a command: the option with its type, and its default. Descriptions are left out, so that a better
wording changes nothing here. Imports torch only where a command does so to show its help.
"""

import argparse
import contextlib
import io
import os
import re
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = ROOT / "experiments"
ARGPARSE_MODULES = ("runyard.training.local", "benchmarks", "benchmarks.gpu")
ANSWER = re.compile(r"\((default: .*|required|repeatable)\)$")
OPTION = re.compile(r"^(-\S.*?|[A-Z][A-Z_]*(?: \S+)*?)(?:\s{2,}(\S.*))?$")
COMMAND = re.compile(r"^  • (\S+)")


@dataclass(frozen=True)
class Help:
    """Options and sub-commands that a help page names."""

    options: tuple[str, ...]
    """`--option TYPE = default`, or with `(required)`."""
    commands: tuple[str, ...]


def scripts() -> list[Path]:
    """The experiments that are run by name."""
    return [file for file in sorted(EXPERIMENTS.glob("*.py")) if "__main__" in file.read_text()]


def parse_help(text: str) -> Help:
    """Read tyro's help page.

    Args:
        text: a page of boxes; in each box an option's name and type stand on one line or several, followed by its
            description on the same line or on indented lines.
    """
    entries: list[tuple[str, str]] = []
    commands: list[str] = []
    box = ""
    for line in text.splitlines():
        if line.startswith("╭─"):
            box = line.strip("╭─╮ ")
        if not line.startswith("│"):
            continue
        content = line.strip("│")[1:].rstrip()
        if box == "subcommands":
            commands += COMMAND.findall(content)
        elif (found := OPTION.match(content)) and (content.startswith("-") or box == "positional arguments"):
            entries.append((found[1], found[2] or ""))
        elif entries and content.startswith(" "):
            name, description = entries[-1]
            entries[-1] = (name, f"{description} {content.strip()}".strip())
        elif entries and not entries[-1][1] and content and content[0] not in "─":
            # A long list of choices goes on in the next line.
            entries[-1] = (entries[-1][0] + content, "")
    return Help(tuple(_entry(*entry) for entry in entries if not entry[0].startswith("-h,")), tuple(commands))


def _entry(name: str, description: str) -> str:
    answer = ANSWER.search(description)
    if answer is None or answer[1] == "repeatable":
        return f"{name} ({answer[1]})" if answer else name
    if answer[1] == "required":
        return f"{name} (required)"
    # The description may hold parentheses of its own: the default is what follows the last mark.
    return f"{name} = {answer[1].rpartition('default: ')[2]}"


def run_for_help(program: str | Path, arguments: list[str]) -> str:
    """Output of the program with --help; a program is a file or a module's name."""
    # With an encoding of its own: without one tyro draws its boxes in ASCII.
    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    sys.argv = [str(program), *arguments, "--help"]
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        if isinstance(program, Path):
            runpy.run_path(str(program), run_name="__main__")
        else:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
    output.flush()
    return output.buffer.getvalue().decode()  # type: ignore[attr-defined]


def tyro_sections(
    name: str, program: str | Path, arguments: list[str], known: frozenset[str] = frozenset()
) -> list[str]:
    """The sections of a command and of its sub-commands; a sub-command's leaves out the options that are `known`."""
    page = parse_help(run_for_help(program, arguments))
    sections = [section(name, [option for option in page.options if option not in known])]
    for command in page.commands:
        sections += tyro_sections(f"{name} {command}", program, [*arguments, command], known | set(page.options))
    return sections


def argparse_section(module: str) -> str:
    """The section of a program that builds an ArgumentParser."""
    options: list[str] = []

    def record(parser: argparse.ArgumentParser, *_: object) -> None:
        for action in parser._actions:
            if isinstance(action, argparse._HelpAction):
                continue
            words = [", ".join(action.option_strings) or action.dest]
            if action.nargs != 0:
                kind = getattr(action.type, "__name__", "str").upper()
                words.append("{" + ",".join(map(str, action.choices)) + "}" if action.choices else kind)
            words.append("(required)" if action.required else f"= {action.default}")
            options.append(" ".join(words))
        raise SystemExit

    original = argparse.ArgumentParser.parse_args
    argparse.ArgumentParser.parse_args = record  # type: ignore[assignment, method-assign]
    try:
        run_for_help(module, [])
    finally:
        argparse.ArgumentParser.parse_args = original  # type: ignore[method-assign]
    return section(f"python -m {module}", options)


def section(name: str, options: list[str]) -> str:
    """A headed list, sorted: the order of options may change."""
    return "\n".join([f"[{name}]", *sorted(options, key=lambda option: option.lstrip("-"))])


def describe() -> str:
    """The whole file."""
    # Wide enough for the longest list of choices, narrow enough for one column.
    os.environ |= {"COLUMNS": "118", "NO_COLOR": "1", "TERM": "dumb"}
    sys.path[:0] = [str(EXPERIMENTS), str(ROOT / "platform"), str(ROOT)]
    sections = tyro_sections("runyard", "runyard.cli", [])
    for script in scripts():
        sections += tyro_sections(f"experiments/{script.name}", script, [])
    sections += [argparse_section(module) for module in ARGPARSE_MODULES]
    return "\n\n".join(sections) + "\n"


if __name__ == "__main__":
    print(describe(), end="")
