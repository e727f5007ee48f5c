from __future__ import annotations

from pathlib import Path

import pytest
from published import read_back

from shardsieve.importers.layouts import Options
from shardsieve.importers.run import import_shards


@pytest.fixture
def run_import(tmp_path):
    def run(kind: str, source: Path, out: str = "OUT", options: Options | None = None, **more):
        more = {"max_bad_fraction": 1.0, "per_shard": 4, **more}
        return read_back(import_shards(kind, source, tmp_path / out, options, **more))

    return run
