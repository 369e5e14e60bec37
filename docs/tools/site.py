"""mkdocs hooks: files of the repository that pages link to become part of the site, and no page
may load anything from another host.

Links such as `../runtime/session.py` work in the repository; in the site they lead to a copy in
`repository/`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
# in Markdown, and in the <picture> of an image that has a form for dark pages
OUTSIDE = re.compile(
    r"(?P<before>\]\(|\bsrc(?:set)?=\")\.\./(?P<name>[^()\s#\"]+)(?:#[^()\s\"]*)?(?P<after>[)\"])"
)
SHOWN_AS_IT_IS = (".png", ".svg", ".json", ".txt")  # browsers save other kinds, or run them
LOADED = re.compile(r"<(?:script|img|iframe|source)\b[^>]*?\bsrc=[\"']?(?:https?:)?//", re.I)
STYLED = re.compile(
    r"<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|preconnect|icon|preload))[^>]*?"
    r"\bhref=[\"']?(?:https?:)?//",
    re.I,
)


def on_files(files: Files, config: Any) -> Files:
    for page in list(files.documentation_pages()):
        for name in (link["name"] for link in OUTSIDE.finditer(page.content_string)):
            source = ROOT / name
            if source.is_file() and files.get_file_from_path(_in_site(name)) is None:
                files.append(File.generated(config, _in_site(name), abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    return OUTSIDE.sub(
        lambda link: f"{link['before']}{_in_site(link['name'])}{link['after']}", markdown
    )


def on_post_page(output: str, page: Any, **_: Any) -> str:
    if found := LOADED.search(output) or STYLED.search(output):
        raise PluginError(f"{page.file.src_uri} would load from another host: {found[0]}")
    return output


def _in_site(name: str) -> str:
    path = name.rstrip("/")
    return f"repository/{path}" if path.endswith(SHOWN_AS_IT_IS) else f"repository/{path}.txt"
