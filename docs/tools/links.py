"""Checks the links between the Markdown files of this repository; needs no network.

    python docs/tools/links.py [FILE.md ...]

A link must lead to a file or folder of the repository, and its anchor to a heading. Links to other
hosts are not followed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINK = re.compile(
    r"(?:\]\(|\bsrc(?:set)?=\")([^()\s\"]+)[)\"]"
)  # Markdown's, and pictures' of HTML
FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)


def pages() -> list[Path]:
    """The documents: Markdown at the top, in docs/, and beside the packages."""
    patterns = ("*.md", "docs/*.md", "benchmarks/*.md", "engines/*.md", "export/**/*.md")
    found = {path for pattern in patterns for path in ROOT.glob(pattern)}
    return sorted(found | set((ROOT / ".github").rglob("*.md")))


def without_code(text: str) -> str:
    """Markdown without its fenced blocks and code spans, in which nothing is a link or heading."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """The names under which headings are found, made as GitHub makes them."""
    names: set[str] = set()
    for title in HEADING.findall(FENCE.sub("", text)):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).lower()
        names.add(re.sub(r"[^\w\- ]", "", words).replace(" ", "-"))
    return names


def broken_links(page: Path) -> Iterator[str]:
    """One line for each link of a page that leads nowhere."""
    text = page.read_text(encoding="utf-8")
    for target in LINK.findall(without_code(text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists():
            yield f"{page.relative_to(ROOT)}: {target} is not there"
        elif anchor and path.suffix == ".md" and anchor not in anchors(path.read_text("utf-8")):
            yield f"{page.relative_to(ROOT)}: {target} has no such heading"


def main() -> int:
    chosen = [Path(name).resolve() for name in sys.argv[1:]] or pages()
    broken = [line for page in chosen for line in broken_links(page)]
    print("\n".join(broken), end="\n" if broken else "")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
