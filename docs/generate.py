"""Generate pages of the site: the README, the benchmarks, the notebook, each verb's options, the Python API.

Run by MkDocs (`make docs`).
"""

import re
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

import docstring_parser
import mkdocs_gen_files
from nbconvert import MarkdownExporter

import spectro
from spectro.cli import POSITIONAL, VERBS

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = "tutorials/recording-to-answer.md"
MOVED = {"benchmarks/README.md": "benchmarks.md", "docs/notebooks/recording-to-answer.ipynb": NOTEBOOK}


def linked(text: str, base: str) -> str:
    """Return a page with its links to repository files changed to point to their copies in the site.

    Args:
        text: Markdown.
        base: the page's folder below the repository's root.
    """

    def moved(found: re.Match[str]) -> str:
        place, _, anchor = found[1].partition("#")
        if "://" in place or not place:
            return found[0]
        path = (ROOT / base / place).resolve().relative_to(ROOT).as_posix()
        if path in MOVED:
            path = MOVED[path]
        elif path.startswith("docs/"):
            path = path.removeprefix("docs/")
        else:
            with mkdocs_gen_files.open(f"files/{path}", "w") as copy:
                copy.write((ROOT / path).read_text(encoding="utf-8"))
            path = f"files/{path}"
        return f"]({path}{'#' if anchor else ''}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", moved, text)


def write(page: str, text: str) -> None:
    """Write a page into the site."""
    with mkdocs_gen_files.open(page, "w") as file:
        file.write(text)


def shown(kind: Any) -> str:
    """Return a type as text for the table of options."""
    if type(None) in get_args(kind):
        return " or ".join([*(shown(one) for one in get_args(kind) if one is not type(None)), "null"])
    if isinstance(kind, UnionType):
        return " or ".join(shown(one) for one in get_args(kind))
    if name := getattr(kind, "__origin__", None) and str(kind):
        return (
            name.replace("typing.", "")
            .replace("Literal[", "one of ")
            .removesuffix("]")
            .replace("'", "")
            .replace("pathlib._local.", "")
            .replace("pathlib.", "")
        )
    return str(getattr(kind, "__name__", kind))


def options(settings: type[Any], prefix: str = "", positional: str = "") -> list[str]:
    """Return the rows of a table of options; options of nested settings are prefixed with their group's name.

    A positional argument has no row.
    """
    told = {one.arg_name: one.description for one in docstring_parser.parse(settings.__doc__ or "").params}
    kinds = get_type_hints(settings)
    rows = []
    for one in fields(settings):
        if one.name == positional:
            continue
        kind, default = kinds[one.name], one.default
        if is_dataclass(kind):
            rows += options(kind, f"{prefix}{one.name}.")  # type: ignore[arg-type]
            continue
        if default is MISSING:
            default = one.default_factory() if one.default_factory is not MISSING else "required"
        words = " ".join((told.get(one.name) or "").split()).replace("|", "\\|")
        value = "null" if default is None else str(default).lower() if isinstance(default, bool) else str(default)
        rows.append(f"| `--{prefix}{one.name.rstrip('_')}` | {shown(kind)} | `{value}` | {words} |".replace("``", ""))
    return rows


def option_page() -> str:
    """Return the page with the options of all verbs."""
    parts = ["# Options\n\n`--config FILE.yaml` reads any of them from a file.\n"]
    for verb, (name, _purpose) in VERBS.items():
        settings = getattr(import_module(f"spectro.verbs.{verb}"), name)
        about = docstring_parser.parse(settings.__doc__ or "")
        words = "\n\n".join(filter(None, (about.short_description, about.long_description)))
        inputs = {"+": " FILE_OR_FOLDER...", "*": " [NAME...]"}[POSITIONAL[verb][1]] if verb in POSITIONAL else ""
        parts.append(f"## {verb}\n\n`spectro {verb}{inputs} [options]`\n\n{words}\n")
        parts.append(
            "| option | type | default | meaning |\n| --- | --- | --- | --- |\n"
            + "\n".join(options(settings, positional=POSITIONAL.get(verb, ("",))[0]))
        )
    return "\n\n".join(parts) + "\n"


def notebook_page(path: Path, page: str) -> str:
    """Return a notebook as Markdown, with the outputs that it holds; its plots are written next to the page."""
    text, resources = MarkdownExporter().from_filename(path)
    for name, content in resources["outputs"].items():
        plot = f"{path.stem}-{name}"
        with mkdocs_gen_files.open(f"{page.rpartition('/')[0]}/{plot}", "wb") as file:
            file.write(content)
        text = text.replace(f"![png]({name})", f"![plot]({plot})")
    return str(text)


def python_page() -> str:
    """Return the page of the public Python API."""
    names = [name for name in spectro.__all__ if name != "SpectroError"]
    homes = {name: f"{getattr(spectro, name).__module__}.{name}" for name in names}
    parts = ["# Python\n\n`import spectro` offers these names.\n", *(f"::: {home}" for home in homes.values())]
    return "\n\n".join([*parts, "## Errors\n", "::: spectro.errors\n    options:\n      show_root_heading: false\n"])


write("index.md", linked((ROOT / "README.md").read_text(encoding="utf-8"), ""))
write("benchmarks.md", linked((ROOT / "benchmarks/README.md").read_text(encoding="utf-8"), "benchmarks"))
for page in sorted((ROOT / "docs").glob("*.md")):
    write(page.name, linked(page.read_text(encoding="utf-8"), "docs"))
write(NOTEBOOK, notebook_page(ROOT / "docs/notebooks/recording-to-answer.ipynb", NOTEBOOK))
write("reference/options.md", option_page())
write("reference/python.md", python_page())
