"""Import floors: how deep the chains of imports inside one folder are.

The rooms of a folder are its modules and its sub-folders, a sub-folder as one room. A room that imports no other room
of the folder stands on floor 1, any other one floor above the highest that it imports. The tree is parsed, not
imported, so that an import inside a function counts too.
"""

import ast
from collections.abc import Mapping
from pathlib import Path

Rooms = dict[str, set[str]]
"""Room -> the other rooms of its folder that it imports."""


def modules(root: Path, packages: Mapping[str, str]) -> dict[str, Path]:
    """Dotted module name -> file, for folder -> package; `__init__.py` goes by its package's name."""
    found = {}
    for folder, package in packages.items():
        for file in sorted((root / folder).rglob("*.py")):
            parts = file.relative_to(root / folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = file
    return found


def imported_modules(module: str, files: Mapping[str, Path]) -> set[str]:
    """The modules among `files` that a module imports; `from package import name` is the module where there is one."""
    file = files[module]
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(), filename=str(file))):
        if isinstance(node, ast.Import):
            # Scripts import each other by bare name: the folder of the one that runs is on the path.
            siblings = {f"{package}.{alias.name}" for alias in node.names} & files.keys()
            names |= siblings | {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            origin = ".".join(part for part in (base, node.module) if part)
            if not node.level and f"{package}.{origin}" in files:
                origin = f"{package}.{origin}"
            for alias in node.names:
                submodule = f"{origin}.{alias.name}"
                names.add(submodule if submodule in files else origin)
    return {name for name in names if name in files and name != module}


def rooms(files: Mapping[str, Path]) -> dict[str, Rooms]:
    """Package -> its rooms with the rooms that they import; the package's own `__init__.py` is a room too."""
    packages = {module for module, file in files.items() if file.name == "__init__.py"}
    packages |= {module.rpartition(".")[0] for module in files if "." in module}
    found: dict[str, Rooms] = {package: {} for package in packages}
    for module in files:
        targets = imported_modules(module, files)
        for package in packages:
            room = _room(module, package)
            if room is not None:
                seen = found[package].setdefault(room, set())
                seen |= {other for name in targets if (other := _room(name, package)) not in (None, room)}
    return found


def _room(module: str, package: str) -> str | None:
    """The room of a package in which a module lies; None outside it."""
    if module == package:
        return "__init__"
    return module.removeprefix(f"{package}.").partition(".")[0] if module.startswith(f"{package}.") else None


def longest_chain(folder: Rooms) -> list[str]:
    """The rooms of the longest chain of imports, the importing one first. ValueError for a ring of imports."""
    chains: dict[str, list[str]] = {}

    def chain(room: str, above: tuple[str, ...]) -> list[str]:
        if room in above:
            raise ValueError(f"expected no ring, found {' -> '.join((*above[above.index(room) :], room))}")
        if room not in chains:
            below = [chain(other, (*above, room)) for other in sorted(folder[room])]
            chains[room] = [room, *max(below, key=len, default=[])]
        return chains[room]

    return max((chain(room, ()) for room in sorted(folder)), key=len, default=[])


def too_deep(files: Mapping[str, Path], most: int) -> list[str]:
    """One line for each package with a ring or with more floors than `most`."""
    found = []
    for package, folder in sorted(rooms(files).items()):
        try:
            chain = longest_chain(folder)
        except ValueError as ring:
            found.append(f"{package}: {ring}")
            continue
        if len(chain) > most:
            found.append(f"{package}: expected at most {most} floors, found {len(chain)}: {' -> '.join(chain)}")
    return found
