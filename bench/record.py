"""Records: what was measured, on which machine, at which commit; and the README made from them."""

from __future__ import annotations

import datetime
import itertools
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import quality_view
from bench.registry import load
from shardsieve.data.manifest import describe_machine

RECORDS = Path(__file__).parent / "records"
_MARKED = re.compile(
    r"(<!-- record: (?P<record>\S+) (?P<view>\S+) -->\n).*?(<!-- end of record -->)", re.DOTALL
)


def write_record(name: str, result: dict[str, Any], repeats: int = 1) -> Path:
    """Writes `records/<date>-<name>/result.json`; a record is never changed afterwards.

    A second one of the same day is `<date>-<name>-2`.
    """
    slug = f"{datetime.datetime.now(datetime.UTC).date()}-{name}"
    slugs = itertools.chain([slug], (f"{slug}-{number}" for number in itertools.count(2)))
    folder = next(RECORDS / one for one in slugs if not (RECORDS / one).exists())
    folder.mkdir(parents=True)
    tree = {
        **tree_state(),
        "machine": describe_machine(),
        "repeats": repeats,
        "result": result,
    }
    file = folder / "result.json"
    file.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
    return file


def tree_state() -> dict[str, Any]:
    """Returns the commit, and whether the files differ from it."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def render_readme(text: str) -> str:
    """Fills every part between record marks from the record it names."""

    def fill(match: re.Match[str]) -> str:
        record = json.loads((RECORDS / match["record"] / "result.json").read_text("utf-8"))
        return f"{match[1]}{_VIEWS[match['view']](record, match['record'])}{match[4]}"

    return _MARKED.sub(fill, text)


def update_readme(path: Path) -> None:
    """Rewrites the figures of a page in place."""
    path.write_text(render_readme(path.read_text(encoding="utf-8")), encoding="utf-8")


def _selection_view(record: dict[str, Any], name: str) -> str:
    result = record["result"]
    scores, counts = result["selection"], result["counts"]
    rows = [
        ("samples in", f"{counts['samples_in']:,}"),
        ("wrong labels before", f"{scores['noise_before']:.1%}"),
        ("wrong labels among the kept", f"{scores['noise_after']:.1%}"),
        ("kept", f"{scores['kept_fraction']:.1%}"),
        *(
            (f"{side}: precision / recall / F1", _triple(scores, side))
            for side in ("clean", "noisy")
        ),
        ("AUROC of finding a wrong label", f"{scores['auroc_p_clean']:.3f}"),
        ("images/s embedding", f"{result['images_per_s']['embed']:,.0f} ({result['device']})"),
    ]
    if result.get("tune") and "validation_accuracy" in result["tune"][-1]:
        last = result["tune"][-1]
        epochs = f"{last['epoch']} epoch{'s' if last['epoch'] > 1 else ''}"
        label = f"accuracy after {epochs} on {last['drawn']:,} clean samples"
        rows.append((label, f"{last['validation_accuracy']:.3f}"))
    table = "".join(f"| {label} | {value} |\n" for label, value in rows)
    machine = record["machine"]
    source = (
        f"Measured once on {machine['cores']} cores of {machine['processor']}, commit "
        f"`{record['commit'][:10]}`, record `bench/records/{name}`.\n"
    )
    return f"| | |\n|---|---|\n{table}\n{source}"


def _triple(scores: dict[str, float], side: str) -> str:
    return " / ".join(f"{scores[f'{side}_{part}']:.3f}" for part in ("precision", "recall", "f1"))


def _measurement_view(record: dict[str, Any], name: str) -> str:
    """What `bench run` printed, which is made from the record alone."""
    run = re.sub(r"^\d{4}-\d{2}-\d{2}-|-\d+$", "", name)
    machine = record["machine"]
    source = (
        f"{machine['cores']} cores of {machine['processor']}, {record['repeats']} repeats, commit "
        f"`{record['commit'][:10]}`, record `bench/records/{name}`.\n"
    )
    return f"```text\n{load(run).describe(record['result'])}\n```\n\n{source}"


def _quality_view(
    table: Callable[[Any], str], *, data: str | None = None
) -> Callable[[dict[str, Any], str], str]:
    """A part of the record of `bench quality`; `data`: only cells of this image set."""

    def view(record: dict[str, Any], name: str) -> str:
        summary = record["result"]
        cells = summary["cells"]
        if data is not None:
            cells = [cell for cell in cells if cell["data"] == data]
        return f"{table(summary if data is None else cells)}\n"

    return view


_VIEWS = {
    "selection": _selection_view,
    "measurement": _measurement_view,
    "quality-verdict": _quality_view(quality_view.verdict),
    **{
        f"quality-{part}-{data}": _quality_view(table, data=data)
        for data in ("cifar10n", "digits", "fashion-mnist", "photos")
        for part, table in (
            ("cells", quality_view.cells_table),
            ("tau", quality_view.tau_table),
            ("accuracy", quality_view.accuracy_table),
        )
    },
}


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=RECORDS.parent, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
