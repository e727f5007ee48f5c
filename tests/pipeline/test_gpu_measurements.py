"""What `gpu-check` measures of embed and tune, on this processor with a tiny network."""

import pytest
import torch
from bench import data as datasets
from bench import embed_gpu, tune_gpu
from bench.gpu_check import missing_in, run_measurement

NETWORK, SIDE = "test_vit", 160


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    return embed_gpu.write_photos(folder / "shards", 40), folder


def test_every_part_of_embedding_is_timed(samples):
    index, folder = samples
    case = embed_gpu.measure_network(NETWORK, index, "fast", torch.device("cpu"), folder, side=SIDE)
    rates = case["images_per_s"]
    assert set(rates) == {"read only", "decode only", "model only", "all of it"}
    assert min(rates.values()) > 0
    assert case["passes"] == 1
    again = embed_gpu.measure_network(
        NETWORK, index, "fast", torch.device("cpu"), folder, side=SIDE, least_seconds=0.2
    )
    assert again["passes"] >= 1
    assert case["of_model"] == pytest.approx(rates["all of it"] / rates["model only"], abs=1e-3)


def test_goals_take_the_faster_decoder():
    cases = [
        {"network": name, "decode": decode, "of_model": share,
         "images_per_s": {"all of it": goal * share}}
        for name, goal in embed_gpu.GOALS.items()
        for decode, share in (("fast", 0.5), ("device", 1.0))
    ]  # fmt: skip
    met = embed_gpu.goals_gpu({"cases": cases})
    assert len(met) == 2 * len(embed_gpu.GOALS)
    assert all(met.values())
    assert not any(embed_gpu.goals_gpu({"cases": cases[::2]}).values())


def test_fine_tuning_tells_speed_waiting_and_operations(tmp_path):
    speed = tune_gpu.measure_speed(
        NETWORK, tmp_path / "run", n_images=32, side=SIDE, device="cpu", tune__batch_size=16
    )
    assert speed["images"] == 32
    assert speed["images_per_s"] > 0
    assert 0 <= speed["waiting_share"] <= 1
    assert speed["flops_per_image"] == 3 * tune_gpu.forward_flops(NETWORK, SIDE)
    told = {"speed": speed | {"mfu": 0.5, "images_per_s": 1e5, "waiting_share": 0.1}, "line": None}
    assert list(tune_gpu.goals_gpu(told).values()) == [True, False]


def test_operations_of_a_known_network_are_counted():
    # 17.56 G multiply-adds, says the table of timm.
    assert tune_gpu.forward_flops("vit_base_patch16_224", 224) == pytest.approx(35.1e9, rel=0.01)


def test_a_folder_that_lacks_something_is_told_before_anything_runs(tmp_path):
    (tmp_path / "train-0.tar").touch()
    assert missing_in(tmp_path) == ["test-*.tar", "truth.parquet"]


def test_whole_line_asks_the_truth(tmp_path):
    data = tmp_path / "data"
    datasets.digits(data)
    (data / "validation.tar").rename(data / "test-0000.tar")
    line = tune_gpu.measure_line(data, tmp_path / "run", quick=True, side=32)
    assert set(line["seconds"]) == {"index", "embed", "probe", "select", "tune"}
    assert len(line["accuracy"]) == 1
    assert 0.5 < line["selection"]["auroc_p_clean"] <= 1


def test_data_goes_to_what_takes_it(monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr(
        "bench.runs.tune.measure_gpu",
        lambda *, quick, data=None: seen.update(quick=quick, data=data) or {},
    )
    monkeypatch.setattr("bench.runs.tune.goals_gpu", lambda result: {"a goal": True})
    assert run_measurement("tune", quick=True, record=False, data=tmp_path) == {"a goal": True}
    assert seen == {"quick": True, "data": tmp_path}
