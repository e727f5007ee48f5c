"""The code blocks of README.md and docs/*.md, and what each of them asks to be checked by.

A comment directly before a block says what is unusual about it:

```
<!-- not run: REASON -->        commands must parse, Python must compile; nothing is run
<!-- run by: tests/FILE.py -->  another test runs it
<!-- output -->                 what the block before it prints, whatever the numbers are
<!-- layout -->                 paths of this repository, which must exist
<!-- record: ... -->            made from a measurement by `python -m bench readme`
```

A block without one is run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = ("sh", "python", "toml")
_COMMENT = re.compile(
    r"<!--\s*(?P<what>not run|run by|output|layout|record)(?::\s*(?P<why>.*?))?\s*-->"
)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: The page's path within the repository.
        line: Of its opening fence, from 1.
        language: Its info string.
        text: What is in it.
        kind: `run`, or what the comment before it says.
        why: What the comment says after its colon.
    """

    page: str
    line: int
    language: str
    text: str
    kind: str
    why: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """Returns the fenced and the indented code blocks of a page, in order."""
    tokens = MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8"))
    found = []
    for at, token in enumerate(tokens):
        if token.type not in ("fence", "code_block"):
            continue
        before = tokens[at - 1] if at else None
        comment = (
            _COMMENT.match(before.content.strip())
            if before is not None and before.type == "html_block"
            else None
        )
        line = token.map[0] + 1 if token.map else 0
        found.append(
            Block(
                page.relative_to(ROOT).as_posix(),
                line,
                token.info.strip(),
                token.content,
                comment["what"] if comment else "run",
                (comment["why"] or "") if comment else "",
            )
        )
    return found


def inline_code(page: Path) -> list[str]:
    """Returns the code spans in the running text and the tables of a page."""
    tokens = MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))
    return [
        child.content
        for token in tokens
        for child in token.children or ()
        if child.type == "code_inline"
    ]


def problem_with(block: Block) -> str | None:
    """Says why nobody could check a block; None when somebody can."""
    if block.kind in ("run", "not run") and block.language not in LANGUAGES:
        return f"a block of the language {block.language!r}: say in a comment what checks it"
    if block.kind == "not run" and len(block.why) < 10:
        return "not run, and no reason is given"
    if block.kind == "run by" and not (ROOT / block.why).is_file():
        return f"run by {block.why}, which does not exist"
    if block.kind == "run by" and Path(block.page).name not in (ROOT / block.why).read_text():
        return f"run by {block.why}, which does not name the page"
    return None


def commands(text: str) -> list[str]:
    """Returns the commands of a shell block, one a line, without comments."""
    joined = re.sub(r"\\\n\s*", "", text)
    return [line for line in map(str.strip, joined.splitlines()) if line and line[0] != "#"]
