"""Planted noise: what it promises about rates and directions, and the scores of `bench quality`."""

import numpy as np
import pytest
from bench import noise
from bench.quality_report import against_peers, interval
from bench.scoring import calibration_error, selection_figures

TRUTH = np.random.default_rng(0).integers(0, 5, 4000)


def test_symmetric_draws_from_all_classes():
    given = noise.symmetric(TRUTH, 0.5, 5, 1)
    assert noise.realised_rate(given, TRUTH) == pytest.approx(0.4, abs=0.03)


def test_asymmetric_goes_to_the_next_class_only():
    given = noise.asymmetric(TRUTH, 0.3, 5, 1)
    wrong = given != TRUTH
    assert wrong.mean() == pytest.approx(0.3, abs=0.001)
    assert (given[wrong] == (TRUTH[wrong] + 1) % 5).all()


def test_class_dependent_follows_its_matrix():
    given = noise.class_dependent(TRUTH, 0.3, 5, 1)
    wanted = noise.random_transition(0.3, 5, np.random.default_rng([1, 1]))
    np.testing.assert_allclose(wanted.sum(1), 1)
    np.testing.assert_allclose(noise.true_transition(given, TRUTH, 5), wanted, atol=0.06)


def test_instance_dependent_noise_depends_on_the_instance():
    sample = np.random.default_rng(2).normal(size=(4000, 8))
    given = noise.instance_dependent(TRUTH, 0.3, 5, 1, sample)
    assert noise.realised_rate(given, TRUTH) == pytest.approx(0.3, abs=0.03)
    # The same kind of sample errs the same way: a direction of the pixels foretells the class.
    wrong = np.flatnonzero((TRUTH == 0) & (given != 0))
    spread = np.array([sample[wrong][given[wrong] == label].mean(0) for label in range(1, 5)])
    assert np.abs(spread).max() > 0.4


def test_open_set_leaves_known_classes_alone():
    true, given = noise.open_set(TRUTH, (4,), 1)
    foreign = TRUTH == 4
    assert (true[foreign] == -1).all()
    assert (given[~foreign] == true[~foreign]).all()
    assert set(given[foreign]) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    "plant", [noise.symmetric, noise.asymmetric, noise.class_dependent], ids=lambda f: f.__name__
)
def test_same_seed_same_noise(plant):
    assert np.array_equal(plant(TRUTH, 0.4, 5, 3), plant(TRUTH, 0.4, 5, 3))
    assert not np.array_equal(plant(TRUTH, 0.4, 5, 3), plant(TRUTH, 0.4, 5, 4))


def test_calibration_error_of_a_fair_and_a_boastful_score():
    rng = np.random.default_rng(0)
    p_clean = rng.random(50_000)
    right = rng.random(50_000) < p_clean
    assert calibration_error(p_clean, right) < 0.01
    assert calibration_error(np.ones(50_000), right) == pytest.approx(0.5, abs=0.01)


def test_figures_of_a_perfect_selection():
    right = np.array([True, True, False, True])
    figures = selection_figures(
        right.astype(float), right, right, np.array([0, 1, 1, 1]), calibrated=True
    )
    assert figures["noisy_f1"] == figures["clean_f1"] == figures["auroc"] == figures["ap"] == 1
    assert figures["noise_left"] == figures["ece"] == 0
    assert figures["smallest_class"] == 1
    assert figures["kept"] == 0.75


def test_best_is_paired_with_the_best_peer():
    rows = [
        {"methods": {"best": {"auroc": 0.9 + s}, "a": {"auroc": 0.8}, "b": {"auroc": 0.85 + s}}}
        for s in (0.0, 0.01, 0.02)
    ]
    versus = against_peers(rows, "auroc")
    assert versus["peer"] == "b"
    assert versus["gain"] == pytest.approx(0.05)
    assert interval([0.1, None, 0.3])["mean"] == pytest.approx(0.2)
    assert interval([None]) is None
