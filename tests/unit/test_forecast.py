"""The forecast: its arithmetic, what it says, and that it leaves nothing behind."""

import pytest

from shardsieve import forecast as module
from shardsieve.errors import DataError
from shardsieve.forecast import StageCost, _costs, _Timed, forecast
from shardsieve.forecast_words import compare, how_far_off, in_words


def timed(**seconds):
    return _Timed(seconds, 0, {})


def test_a_line_through_two_cleans():
    costs = _costs(
        timed(embed=9.0, probe=3.0),
        timed(embed=3.0, probe=0.5),
        timed(embed=13.0, probe=0.4),
        few=20,
        many=120,
    )
    # 0.1 s a sample; 1 s whatever there is; 6 s more the first time.
    assert costs["embed"] == StageCost(first_s=7.0, again_s=1.0, sample_s=pytest.approx(0.1))
    # One that noise made faster with more samples costs nothing more for each.
    assert costs["probe"] == StageCost(first_s=3.0, again_s=0.5, sample_s=0.0)


def test_as_few_as_there_are():
    costs = _costs(timed(embed=5.0), timed(embed=2.0), timed(embed=2.0), few=20, many=20)
    assert costs["embed"] == StageCost(first_s=3.0, again_s=0.0, sample_s=pytest.approx(0.1))


@pytest.mark.parametrize(
    ("available", "expected"), [(10_000, 500), (300, 300), (10**6, 500), (30, 30)]
)
def test_as_many_samples_as_the_budget_allows(available, expected):
    again = _Timed({}, 0, {"time": {"wall_s": 2.0}})
    assert module._as_many(again, few=20, available=available, budget_s=50) == expected


@pytest.fixture(scope="module")
def found(shards, settings, tmp_path_factory):
    removed = tmp_path_factory.mktemp("removed") / "set"
    # Larger than thumbnails, so that those are cleaned, too.
    config = settings(write__removed=removed, embed__image_size=48)
    result = forecast(shards.patterns, config, budget_s=1)
    assert not removed.exists()
    return result


def test_what_is_measured(found, shards):
    assert found.samples == len(shards.given) == 240
    assert found.measured <= 240
    assert set(found.parts) == {"read", "decode", "model", "embed", "probe", "select", "write"}
    assert found.bottleneck in found.parts and found.bottleneck != "embed"
    assert found.seconds > 0 and found.warm_seconds > 0
    # As many bytes as the features alone take, at least: 240 samples, 2 bytes a number.
    assert found.size_bytes > 240 * 2 * 32
    assert found.settings["backbone"] == "test_resnet"
    assert found.settings["image_size"] == 48 and found.settings["batch_size"] == 16


def test_more_samples_take_longer():
    costs = {name: StageCost(0.0, 0.0, 0.0) for name in ("select", "write")}
    costs |= {"embed": StageCost(5.0, 1.0, 0.1), "probe": StageCost(1.0, 0.0, 0.01)}
    again = more = _Timed({}, 1000, EMBEDDED)
    one, ten = (
        module._put_together(samples, 100, costs, again, more, 20) for samples in (1000, 10_000)
    )
    assert (one.seconds, one.warm_seconds) == (116.0, 111.0)
    assert (ten.seconds, ten.warm_seconds) == (1106.0, 1101.0)


EMBEDDED = {
    "time": {"wall_s": 10.0, "read_s": 1.0, "decode_s": 4.0, "model_s": 15.0},
    "backbone": "b",
    "preprocessing": {"size": 32},
    "precision": "fp32",
    "engine": "torch",
    "decode": "fast",
    "batch_size": 16,
}


def test_rates_of_what_runs_side_by_side():
    costs = {name: StageCost(0.0, 0.0, 0.001) for name in ("embed", "probe", "select", "write")}
    timed = _Timed({}, 1000, EMBEDDED)
    parts = module._put_together(1000, 100, costs, timed, timed, 20).parts
    # Two threads were at it: 100 images in 15 of 2 x 10 seconds.
    assert parts["model"] == pytest.approx(13.3)
    assert parts["decode"] == 50.0 and parts["read"] == 200.0 and parts["embed"] == 10.0
    assert parts["write"] == 1000.0


def test_in_words(found):
    text = in_words(found)
    assert "test_resnet at 48 px, torch" in text
    assert text.count("<- the bottleneck") == 1
    assert "clean" in text and "240 samples: about" in text


def test_compared_with_an_earlier_one(found):
    now = found.to_json()
    halved = {**now, "parts": {part: rate / 2 for part, rate in now["parts"].items()}}
    halved["settings"] = now["settings"] | {"engine": "openvino"}
    lines = compare(now, halved)
    assert len(lines) == 8 and all("(2.00x)" in line for line in lines[:7])
    assert lines[7] == "other settings: engine openvino -> torch"


@pytest.mark.parametrize("earlier", [{}, [], {"parts": 3}, {"parts": {"read": "x"}}])
def test_what_is_no_forecast_cannot_be_compared(found, earlier):
    with pytest.raises(DataError, match="bench --json"):
        compare(found.to_json(), earlier)


def test_how_far_off(found):
    assert how_far_off(found, 2 * found.warm_seconds).endswith("(100% longer)")
    assert how_far_off(found, 0.9 * found.warm_seconds).endswith("(10% shorter)")
