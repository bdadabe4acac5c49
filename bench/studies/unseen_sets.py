"""Texts with labels out of the packages of a machine, of several kinds."""

from __future__ import annotations

import ast
import gettext
import gzip
import html
import re
import subprocess
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

_WORDS, _FEWEST = 200, 8  # of a text
_PAGE = re.compile(r"([A-Za-z_][\w.:+-]*) ?\((\d)\w*\)")
_PARAGRAPH, _TAG = re.compile(r'<div class="docblock"><p>(.*?)</p>', re.DOTALL), re.compile(r"<[^>]*>")
_FONT = re.compile(r"\\f(?:[A-Z]|\(..|\[\w*\])|\\m\[\w*\]|\\[-&|]|\\s[-+]?\d")


def manual_pages(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Name and first paragraphs of the description of each manual page, with the pages that it refers to at its end."""
    for path in sorted(folder.glob("man*/*.gz")):
        try:
            parts = _sections(gzip.decompress(path.read_bytes()).decode("utf-8"))
        except (OSError, EOFError, UnicodeDecodeError):
            continue
        words = " ".join([parts.get("NAME", ""), parts.get("DESCRIPTION", "")]).split()[:_WORDS]
        others = {f"{name.lower()}({section})" for name, section in _PAGE.findall(parts.get("SEE ALSO", ""))}
        if len(words) >= _FEWEST and others:
            yield " ".join(words), sorted(others)


def _sections(source: str) -> dict[str, str]:
    """Plain text of the sections of a page, without macros and changes of font."""
    found: dict[str, str] = {}
    name = ""
    for line in source.splitlines():
        if line.startswith((".SH", ".Sh")):
            name = line[3:].strip().strip('"').upper()
        elif not line.startswith(('.\\"', "'\\\"")):
            macro, _, rest = line.partition(" ") if line.startswith(".") else ("", "", line)
            if macro == ".Xr":  # name and section in two words
                page, _, section = rest.partition(" ")
                rest = f"{page}({section[:1]})"
            found[name] = found.get(name, "") + " " + _FONT.sub("", rest).replace('"', "")
    return found


def german_messages(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Translated messages of the programs installed, with the programs that have them."""
    programs: dict[str, set[str]] = {}
    for path in sorted(folder.glob("de/LC_MESSAGES/*.mo")):
        try:
            with open(path, "rb") as file:
                catalogue = gettext.GNUTranslations(file)
        except UnicodeDecodeError:
            continue
        for key, text in vars(catalogue)["_catalog"].items():
            if key and len(str(text).split()) >= 3:
                programs.setdefault(" ".join(str(text).split()), set()).add(path.stem)
    yield from ((text, sorted(names)) for text, names in programs.items())


def rust_pages(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """First paragraphs of the items of Rust's ``core``, with the modules that they are in and their kind."""
    for path in sorted(folder.glob("stable-*/share/doc/rust/html/core/**/*.html")):
        kind, _, rest = path.name.partition(".")
        found = _PARAGRAPH.search(path.read_text(encoding="utf-8", errors="replace"))
        words = html.unescape(_TAG.sub("", found[1])).split() if found else []
        if rest != "html" and len(words) >= 3:
            yield " ".join(words), [*path.parent.parts[path.parent.parts.index("core") + 1 :], kind]


def debian_packages(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Descriptions of the packages that apt knows of, with their tags (debtags); ``folder`` is where its lists are."""
    said = subprocess.run(
        ["apt-cache", "-o", f"Dir::State::lists={folder}", "dumpavail"], capture_output=True, check=True
    )
    for stanza in said.stdout.decode("utf-8", "replace").split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line.startswith(" "):
                fields[name] += line
            else:
                name, _, fields[name] = line.partition(":")
        words, tags = fields.get("Description", "").split()[:_WORDS], fields.get("Tag", "").replace(" ", "")
        if len(words) >= 3 and tags:
            yield " ".join(words), sorted(set(tags.split(",")))


def python_calls(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """First lines of what functions are documented by, with the names of the functions that they call."""
    for tree in _parsed(folder):
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                words = (ast.get_docstring(node) or "").partition("\n")[0].split()
                called = (inner.func for inner in ast.walk(node) if isinstance(inner, ast.Call))
                names = {
                    f.id if isinstance(f, ast.Name) else f.attr
                    for f in called
                    if isinstance(f, (ast.Name, ast.Attribute))
                }
                if len(words) >= 3 and names:
                    yield " ".join(words), sorted(names)


def python_imports(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Names that Python files use, with the packages that they import; no name of what is imported."""
    for tree in _parsed(folder):
        packages, own, used = set(), set(), {}
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                own |= {part for alias in node.names for part in (alias.asname or alias.name).split(".")}
                if isinstance(node, ast.Import):
                    packages |= {alias.name.partition(".")[0] for alias in node.names}
                elif node.module and not node.level:
                    packages.add(node.module.partition(".")[0])
            elif isinstance(node, (ast.Name, ast.Attribute)):
                used[node.id if isinstance(node, ast.Name) else node.attr] = None
        words = [name for name in used if name not in own | packages][:_WORDS]
        if len(words) >= _FEWEST and packages - {"__future__"}:
            yield " ".join(words), sorted(packages - {"__future__"})


def python_arguments(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """What functions are documented by up to the first empty line, and the words of their names, with the names of their
    arguments."""
    for tree in _parsed(folder):
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                first = (ast.get_docstring(node) or "").partition("\n\n")[0]
                words = [*node.name.split("_"), *first.split()][:_WORDS]
                given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
                names = {argument.arg for argument in given} - {"self", "cls"}
                if first and len(words) >= _FEWEST and names:
                    yield " ".join(words), sorted(names)


def _parsed(folder: Path) -> Iterator[ast.Module]:
    for path in sorted(folder.rglob("*.py")):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError, RecursionError):
            continue


KINDS = {
    "manual": (manual_pages, Path("/usr/share/man")),
    "german": (german_messages, Path("/usr/share/locale")),
    "rust": (rust_pages, Path("~/.rustup/toolchains").expanduser()),
    "debian": (debian_packages, Path("/var/lib/apt/lists")),
    "calls": (python_calls, Path("~/.pyenv/versions/3.12.1/lib").expanduser()),
    "arguments": (python_arguments, Path(sysconfig.get_paths()["purelib"])),
    "imports": (python_imports, Path("~/.pyenv/versions/3.10.13/lib").expanduser()),
}
