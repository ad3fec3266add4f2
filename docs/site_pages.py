"""A hook of mkdocs: pages that are made of what lies elsewhere in the repository.

The start page is README.md, results of benchmarks are those of benchmarks/results, the reference is made of docstrings,
tutorials are notebooks with their outputs, and source files that a page links to are shown as they are. Links in pages
are those of the repository, where one reads them as well; here they are turned to the site's.
"""

from __future__ import annotations

import importlib
import posixpath
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
REFERENCE: dict[str, tuple[str, Iterable[str]]] = {  # page: its title, and the modules whose __all__ it has
    "index": ("The package", ["lightning_tspike"]),
    "callbacks": ("Callbacks", ["lightning_tspike.callbacks"]),
    "data": ("Data", ["lightning_tspike.data"]),
    "zoo": ("Zoo", ["lightning_tspike.zoo"]),
    "analysis": ("Analysis", ["lightning_tspike.analysis"]),
    "inference": ("Inference", ["lightning_tspike.inference"]),
    "neurons": (
        "Neurons and equations",
        ["lightning_tspike.neurons", "lightning_tspike.functional", "lightning_tspike.surrogate"],
    ),
}
_LINK = re.compile(r"\]\(([^)\s#]+)(#[^)\s]*)?\)")
_LANGUAGES = {".py": "python", ".cpp": "cpp", ".json": "json", ".jsonl": "json", ".yaml": "yaml", ".cff": "yaml"}


def on_startup(**_: Any) -> None:
    """Put the package together as it is installed, for the reference: two of its rooms lie beside it."""
    package = ROOT / "build" / "docs" / "lightning_tspike"
    shutil.rmtree(package, ignore_errors=True)
    is_code = shutil.ignore_patterns("__pycache__", "weights", "recipes", "templates", "*.cpp")
    for folder, place in (
        ("lightning_tspike", package),
        ("callbacks", package / "callbacks"),
        ("zoo", package / "zoo"),
    ):
        shutil.copytree(ROOT / folder, place, ignore=is_code)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and pictures that are not in docs/."""
    readme = (ROOT / "README.md").read_text()
    _add(files, config, "index.md", content=readme)
    shown: set[str] = set()
    for name, (title, modules) in sorted(REFERENCE.items(), key=lambda item: item[0] == "index"):
        _add(files, config, f"reference/{name}.md", content=_reference(title, modules, shown))
    for path in sorted((ROOT / "docs" / "tutorials").glob("*.ipynb")):
        _add_notebook(files, config, path)
    pages = [(ROOT / "docs" / file.src_uri, file.content_string) for file in files if file.src_uri.endswith(".md")]
    wanted = {target for path, text in pages for target in _outside(path.parent, text)} | set(_outside(ROOT, readme))
    while wanted:  # pages of results link to pictures and to each other
        path = wanted.pop()
        uri = _uri(path)
        if files.get_file_from_path(uri) is not None:
            continue
        if uri.startswith("results/"):
            _add(files, config, uri, abs_src_path=str(path))
            if path.suffix == ".md":
                wanted |= set(_outside(path.parent, path.read_text()))
        else:
            _add(files, config, uri, content=_source(path))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links of the repository into links of the site."""
    here = page.file.src_uri
    folder = ROOT if here == "index.md" else _folder_of(here)

    def turned(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = (folder / target).resolve()
        path = path.with_suffix(".md") if path.suffix == ".ipynb" else path
        uri = str(path.relative_to(ROOT / "docs")) if _is_in_docs(path) else _uri(path)
        return f"]({posixpath.relpath(uri, posixpath.dirname(here) or '.')}{anchor})"

    return _LINK.sub(turned, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Take Sphinx's roles out of docstrings, which Markdown leaves as they are."""
    html = re.sub(r":(?:attr|class|data|func|meth|mod):<code>~?([^<]*)</code>", r"<code>\1</code>", html)
    return html.replace("::</p>", ":</p>")


def _add(files: Files, config: Any, uri: str, **source: Any) -> None:
    files.append(File.generated(config, uri, **source))


def _add_notebook(files: Files, config: Any, path: Path) -> None:
    files.remove(files.src_uris[f"tutorials/{path.name}"])
    exporter = MarkdownExporter(display_data_priority=["image/png", "text/plain"])
    text, resources = exporter.from_filename(str(path))
    _add(files, config, f"tutorials/{path.stem}.md", content=text.replace("](output_", f"]({path.stem}_output_"))
    for name, picture in resources["outputs"].items():
        _add(files, config, f"tutorials/{path.stem}_{name}", content=picture)


def _folder_of(uri: str) -> Path:
    """Where the links of a page start from, in the repository."""
    if uri.startswith("results/"):
        return ROOT / "benchmarks" / "results"
    return (ROOT / "docs" / uri).parent


def _outside(folder: Path, text: str) -> list[Path]:
    """Files of the repository outside docs/ that a page links to."""
    found = [(folder / target).resolve() for target, _ in _LINK.findall(text) if "://" not in target]
    return [path for path in found if path.is_file() and not _is_in_docs(path)]


def _is_in_docs(path: Path) -> bool:
    return path.is_relative_to(ROOT / "docs") and path.suffix != ".py"


def _uri(path: Path) -> str:
    """Where a file of the repository is on the site."""
    if path.is_dir():  # its contents are what README says of them
        return "index.md"
    inside = path.relative_to(ROOT)
    results = Path("benchmarks/results")
    if inside.suffix in (".md", ".png", ".svg") and inside.is_relative_to(results):
        return f"results/{inside.relative_to(results)}"
    return f"source/{inside}.md"


def _source(path: Path) -> str:
    language = _LANGUAGES.get(path.suffix, "text")
    return f"# {path.relative_to(ROOT)}\n\n```{language}\n{path.read_text()}\n```\n"


def _reference(title: str, modules: Iterable[str], shown: set[str]) -> str:
    """A page with everything that these modules offer, from its docstrings; but for what another page has shown."""
    text = [f"# {title}", ""]
    for name in modules:
        module = importlib.import_module(name)
        text += [_summary(module), ""]
        for public in sorted(module.__all__, key=str.lower):
            thing = getattr(module, public)
            if hasattr(thing, "__path__") or type(thing).__name__ == "module":
                continue  # has a page of its own
            home = str(getattr(thing, "__module__", ""))
            is_ours = home.startswith("lightning_tspike") and hasattr(thing, "__qualname__")
            target = f"::: {home}.{thing.__qualname__}" if is_ours else f"::: {name}.{public}"
            if target not in shown:  # some things have two names
                shown.add(target)
                text += [target, ""]
    return "\n".join(text)


def _summary(module: Any) -> str:
    return (module.__doc__ or "").partition("\n")[0]
