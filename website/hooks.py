"""What MkDocs does not do by itself; it calls the functions named ``on_…``.

Theory of operation. The pages of docs/ are written to be read in the repository, where most people meet them. Here
they become a site without a second copy of anything: pages that are not in docs/ join it (`JOINING`), the reference
that the code makes is added (`reference`), and each link is looked up where it leads in the repository. What is a page
of the site is linked there, by its title where the repository names a file; everything else in the repository itself.
At the end `llms.txt` lists all pages for programs, beside the text of each.
"""

from __future__ import annotations

import itertools
import posixpath
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation, Section
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# MkDocs loads this file by its path.
sys.path.insert(0, str(ROOT))
from website import reference  # noqa: E402

ADDRESSES: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["pinstream"][
    "addresses"
]
# Page of the site -> the file of the repository, for those that are not in docs/.
JOINING = {
    "index.md": "README.md",
    "pages.md": "docs/README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "helm.md": "deploy/helm/pinstream/README.md",
    "example.md": "examples/shop/README.md",
}
# MkDocs would take the index of the folder for the site's first page.
NOT_SHOWN = {"README.md", "performance.json"}
# Files that the site serves as they are.
SERVED = {"mapping.schema.json": "schemas/mapping.schema.json"}
STYLE = "site.css"
MERMAID = "mermaid.min.js"
_FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2[ \t]*$", re.MULTILINE | re.DOTALL)
# With its label, if that has no code in it.
_LINK = re.compile(r"(\[[^\[\]]*)?\]\(([^)\s]+)\)")
# A file that a label or a text names, where a reader of the site expects a page.
_FILE = re.compile(r"[\w./-]+\.md")
_NAMED = re.compile(r"(?<![\w./\[])(?<!\]\()docs/[\w-]+\.md(?![\w\]])")
_CODE = re.compile(r"(`+).+?\1", re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Names headings as the repository's own pages do, so that one anchor serves both, and lists the recipes."""
    config.mdx_configs["toc"]["slugify"] = slug
    config.site_url = ADDRESSES["site"].rstrip("/") + "/"
    config.repo_url = ADDRESSES["repository"]
    config.repo_name = "Source"
    recipes = {path.stem: path.read_text("utf-8") for path in (ROOT / "docs" / "recipes").glob("*.md")}
    [section] = [section for section in config.nav or () if "Recipes" in section]
    section["Recipes"] = [
        {text.partition("\n")[0].removeprefix("# "): f"recipes/{name}.md"}
        for name, text in sorted(recipes.items())
    ]
    return config


def slug(heading: str, separator: str) -> str:
    """Return the anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", separator)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Takes the pages that are not in docs/, and removes what is none."""
    for file in [file for file in files if file.src_uri in NOT_SHOWN]:
        files.remove(file)
    for uri, path in {**JOINING, **SERVED}.items():
        files.append(File.generated(config, uri, content=(ROOT / path).read_text("utf-8")))
    for uri, text in reference.pages().items():
        files.append(File.generated(config, uri, content=text))
    here = Path(__file__).parent
    files.append(File.generated(config, STYLE, abs_src_path=str(here / STYLE)))
    files.append(File.generated(config, MERMAID, abs_src_path=str(here / "target" / MERMAID)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Sends each link where it leads: to a page of the site, or into the repository."""
    uri = page.file.src_uri
    if not re.search(r"^##", markdown, re.MULTILINE):
        page.meta.setdefault("hide", ["toc"])  # its room is for the tables
    source = JOINING.get(uri, f"docs/{uri}")
    folder = posixpath.dirname(source)
    titles = dict(_titles(config.nav))
    shown = {path: at for at, path in {**JOINING, **SERVED}.items()}
    shown |= {f"docs/{file.src_uri}": file.src_uri for file in files if file.src_uri not in JOINING}

    def link(found: re.Match[str]) -> str:
        label, address = found[1] or "", found[2]
        path, mark, anchor = address.partition("#")
        if not path or re.match(r"[a-z]+:", address):
            return found[0]
        file = posixpath.normpath(posixpath.join(folder, path))
        if file not in shown:
            return f"{label}]({ADDRESSES['repository']}/blob/main/{file}{mark}{anchor})"
        at = shown[file]
        if at in titles and _FILE.fullmatch(label[1:]):
            label = f"[{titles[at]}"
        return f"{label}]({posixpath.relpath(at, posixpath.dirname(uri) or '.')}{mark}{anchor})"

    def change(text: str) -> str:
        named = _NAMED.sub(lambda found: f"[{found[0]}]({posixpath.relpath(found[0], folder)})", text)
        return _LINK.sub(link, named)

    return outside_code(markdown, change)


def _titles(nav: Any) -> Iterator[tuple[str, str]]:
    """Yield each page of the navigation with its title there."""
    for section in nav:
        [pages] = section.values()
        yield from ((path, title) for page in pages if isinstance(page, dict) for title, path in page.items())


def outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Return the text with `change` made to all of it but code."""
    done, at = [], 0
    spans = sorted(
        (*_FENCE.finditer(markdown), *_CODE.finditer(markdown)), key=lambda one: (one.start(), -one.end())
    )
    for span in spans:
        if span.start() >= at:
            # A table of the repository's escapes a bar also within code; here the backslash would be seen.
            code = span[0].replace("\\|", "|") if span.re is _CODE else span[0]
            done += [change(markdown[at : span.start()]), code]
            at = span.end()
    return "".join([*done, change(markdown[at:])])


def on_page_content(html: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Prepares what is wider than a telephone: there a row of a large table is a list of named values, a diagram can
    be moved, and a picture that is cut off leads to the whole one."""
    html = re.sub(r"<table>.*?</table>", lambda table: _named(table[0]), html, flags=re.DOTALL)
    html = re.sub(r'<pre class="mermaid">.*?</pre>', r'<div class="wide">\g<0></div>', html, flags=re.DOTALL)
    return re.sub(r'<img [^>]*\bsrc="([^"]+)"[^>]*>', r'<a href="\1">\g<0></a>', html)


def _named(table: str) -> str:
    """Return a table whose cells say what their column is called."""
    columns = [re.sub(r"<.*?>", "", one) for one in re.findall(r"<th\b.*?>(.*?)</th>", table, re.DOTALL)]
    at = itertools.count()
    cell = r"<td(?=[ >])"
    return re.sub(cell, lambda _: f'<td data-column="{columns[next(at) % len(columns)]}"', table)


def on_post_page(output: str, *, page: Page, config: MkDocsConfig) -> str:
    """Brings the program that draws diagrams to the pages that have one, from the site itself."""
    if '<pre class="mermaid">' not in output:
        return output
    up = posixpath.relpath(MERMAID, posixpath.dirname(page.file.dest_uri) or ".")
    return output.replace("</body>", f'<script src="{up}"></script></body>', 1)


def on_nav(nav: Navigation, *, config: MkDocsConfig, files: Files) -> Navigation:
    """Keeps the order of the pages for `llms.txt`."""
    config.extra["order"] = nav.items
    return nav


def on_post_build(config: MkDocsConfig) -> None:
    """Writes `llms.txt`, and beside each page its text."""
    lines = [f"# {config.site_name}", "", f"> {config.site_description}", ""]
    for section in config.extra["order"]:
        assert isinstance(section, Section), section
        lines += [f"## {section.title}", ""]
        for page in section.children:
            assert isinstance(page, Page), page
            text = page.markdown or ""
            at = (
                f"{page.file.url}index.md"
                if page.file.url.endswith("/") or not page.file.url
                else page.file.url
            )
            at = at.removeprefix("./")
            (Path(config.site_dir) / at).write_text(text, "utf-8")
            lines.append(f"- [{page.title}]({config.site_url}{at}): {first_sentence(text)}")
        lines.append("")
    (Path(config.site_dir) / "llms.txt").write_text("\n".join(lines), "utf-8")


def first_sentence(markdown: str) -> str:
    """Return the first sentence of a page, without markup; empty if it begins with none."""
    for paragraph in re.split(r"\n\s*\n", _FENCE.sub("", markdown)):
        text = " ".join(re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", paragraph).split())
        if re.match(r"[A-Za-z`]", text) and not text.startswith("```"):
            found = re.match(r".+?[.:](?=\s|$)", text)
            return (found[0] if found else text).rstrip(":.") + "."
    return ""
