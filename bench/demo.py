"""`make demo`: the whole line on real images, and how right it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import webdataset

from bench.data import NoisyShards
from bench.scoring import score_selection
from shardsieve.config import load_config
from shardsieve.pipeline import clean
from shardsieve.progress import Progress
from shardsieve.run import Run


def run_line(
    data: NoisyShards,
    out: Path,
    progress: Progress,
    *,
    tune: bool = True,
) -> dict[str, Any]:
    """Runs `clean` and checks and scores what came out.

    Returns:
        Counts, scores against the truth where there is one, seconds and rates per stage.
    """
    values: dict[str, Any] = {
        "tune.epochs": 2,
        "tune.max_samples": 2000,
        "tune.validation": list(data.validation),
    }
    if data.classes is not None:
        values["index.classes"] = str(data.classes)
    config = load_config(values=values | data.settings)
    run = clean(data.train, out, config, tune=tune, progress=progress)
    verified = verify_bytes(run)
    stages = run.manifest.stages
    result: dict[str, Any] = {
        "data": data.name,
        "counts": run.manifest.counts.model_dump() if run.manifest.counts else None,
        "verified_samples": verified,
        "seconds": {name: record.seconds for name, record in stages.items()},
        "images_per_s": {
            name: round(record.images / record.seconds, 1)
            for name, record in stages.items()
            if record.images
        },
        "device": stages["embed"].device,
    }
    if data.truth is not None:
        result["selection"] = score_selection(run.scores, data.truth)
    if tune:
        result["tune"] = stages["tune"].facts["metrics"]
    return result


def verify_bytes(run: Run) -> int:
    """Opens source and clean shards with webdataset and compares every kept sample.

    Returns:
        How many samples were compared.

    Raises:
        AssertionError: A byte differs, or a sample is missing or out of order.
    """
    manifest = run.manifest
    kept = run.scores.filter(run.scores.column("kept"))
    expected = iter(kept.column("key").to_pylist())
    compared = 0
    for shard in manifest.outputs["clean"]:
        source = _samples(Path(manifest.inputs[shard["source"]]["path"]))
        for sample in _samples(run.path / "clean" / shard["file"]):
            key = next(expected)
            original = next(other for other in source if other["__key__"] == key)
            assert _parts(sample) == _parts(original), f"{key} differs from its source"
            compared += 1
    assert next(expected, None) is None, "a kept sample is missing from the clean shards"
    return compared


def describe(result: dict[str, Any], run: Path) -> str:
    """Returns what the demo prints at its end."""
    counts = result["counts"]
    removed, unreadable = sum(counts["removed"].values()), sum(counts["unreadable"].values())
    lines = [
        f"{result['data']} on {result['device']}",
        f"  in {counts['samples_in']:,} = kept {counts['kept']:,} + removed {removed:,} "
        f"+ unreadable {unreadable:,}",
        f"  {result['verified_samples']:,} kept samples equal their source byte for byte "
        "(opened with webdataset)",
    ]
    scores = result.get("selection")
    if scores:
        lines += [
            f"  wrong labels: {scores['noise_before']:.1%} before, {scores['noise_after']:.1%} "
            "among the kept",
            "           precision  recall      F1",
            *(
                f"  {name:8} {scores[f'{name}_precision']:9.3f} {scores[f'{name}_recall']:7.3f} "
                f"{scores[f'{name}_f1']:7.3f}"
                for name in ("clean", "noisy")
            ),
            f"  AUROC of finding a wrong label: {scores.get('auroc_p_clean', 0):.4f} by p_clean, "
            f"{scores.get('auroc_loss', 0):.4f} by loss",
        ]
    for epoch in result.get("tune", []):
        accuracy = epoch.get("validation_accuracy")
        tail = f", accuracy on clean validation images {accuracy:.3f}" if accuracy else ""
        lines.append(f"  tuned on {epoch['drawn']:,} clean samples{tail}")
    lines += [
        f"  clean shards  {run / 'clean'}",
        f"  report        {run / 'report' / 'report.html'}",
        f"  model         {run / 'tune' / 'model.safetensors'}",
    ]
    return "\n".join(lines)


def _samples(path: Path) -> Any:
    # The shards are ours and local; webdataset wants to be told that no shuffling is meant.
    return iter(webdataset.WebDataset(str(path), shardshuffle=False))


def _parts(sample: dict[str, Any]) -> dict[str, bytes]:
    return {name: value for name, value in sample.items() if not name.startswith("__")}
