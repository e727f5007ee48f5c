"""The linear heads: the loss and its gradient, scaling, folding, and what training does."""

import numpy as np
import pytest
import torch

from shardsieve.config import ProbeConfig
from shardsieve.data.features import FeatureStore, write_shard
from shardsieve.models.linear import fit_scaling, gce_gradient, train_heads


def store(folder, features_ND, per_shard=70):
    starts = range(0, len(features_ND), per_shard)
    for shard, start in enumerate(starts):
        part = features_ND[start : start + per_shard].astype(np.float16)
        write_shard(folder, shard, part, np.zeros(len(part), np.uint8), [None] * len(part))
    return FeatureStore.open(folder, len(starts))


def blobs(n_samples=400, n_classes=4, dim=12, noise=0.3, seed=0):
    rng = np.random.default_rng(seed)
    true = rng.integers(0, n_classes, n_samples)
    centres = rng.normal(0, 2, (n_classes, dim))
    features = centres[true] + rng.normal(0, 1, (n_samples, dim))
    given = np.where(rng.random(n_samples) < noise, rng.integers(0, n_classes, n_samples), true)
    return features, given.astype(np.int32), true


@pytest.mark.parametrize("q", [0.0, 0.3, 0.7, 1.0])
def test_gradient_is_that_of_the_loss(q):
    torch.manual_seed(0)
    logits = torch.randn(3, 9, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 5, (9,))
    p = torch.softmax(logits, -1)[:, torch.arange(9), labels]
    plain = -torch.log(p) if q == 0 else (1 - p**q) / q
    (expected,) = torch.autograd.grad(plain.sum(), logits)
    loss, gradient = gce_gradient(logits.detach(), labels, q)
    torch.testing.assert_close(loss, plain.detach())
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("q", [0.0, 1e-8, 0.7, 1.0])
def test_extreme_logits_stay_finite(q):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [0.0, 0.0, 0.0]])
    loss, gradient = gce_gradient(logits, torch.tensor([0, 0, 0]), q)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(gradient).all()
    assert loss[0] == 0
    if q > 0:
        assert loss[1] == pytest.approx(-np.expm1(-q * 2e4) / q)


def test_tiny_q_is_cross_entropy():
    # The naive (1 - p^q) / q gives 0 here in single precision.
    logits, labels = torch.zeros(1, 10), torch.tensor([3])
    loss, _ = gce_gradient(logits, labels, 1e-8)
    assert float(loss) == pytest.approx(np.log(10), rel=1e-6)


def test_standardise_far_from_the_origin(tmp_path):
    rng = np.random.default_rng(0)
    features = store(tmp_path, rng.normal(100, 0.5, (500, 6)))
    rows = np.arange(500)
    scaling = fit_scaling(features, rows, "standardise", torch.device("cpu"))
    scaled = scaling.apply(torch.from_numpy(features.take(rows)).float())
    assert scaled.mean(0).abs().max() < 1e-3
    # 1 less the share of the mean variance that is added.
    expected = torch.full((6,), 1 / 1.01)
    torch.testing.assert_close(scaled.var(0, correction=0), expected, atol=5e-3, rtol=0)


def test_feature_that_hardly_varies_is_not_blown_up(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, (500, 4))
    values[:, 1] = 7
    values[:, 2] = 1e-4 * rng.normal(0, 1, 500)
    features = store(tmp_path, values)
    rows = np.arange(500)
    scaling = fit_scaling(features, rows, "standardise", torch.device("cpu"))
    scaled = scaling.apply(torch.from_numpy(features.take(rows)).float())
    assert (scaled[:, 1] == 0).all()
    assert scaled[:, 2].abs().max() < 0.01
    assert float(scaling.scale_D.max()) < 20


@pytest.mark.parametrize("mode", ["standardise", "none"])
def test_folded_head_gives_the_same_logits_on_plain_features(tmp_path, mode):
    values, given, _ = blobs()
    features = store(tmp_path, values)
    heads, _ = train_heads(
        features,
        np.arange(400),
        given,
        4,
        np.zeros((1, 400), bool),
        ProbeConfig(epochs=3, normalise=mode),
        seed=0,
        device=torch.device("cpu"),
        advance=lambda amount: None,
    )
    plain = torch.from_numpy(features.take(np.arange(400))).float()
    weight, bias = heads.folded(0)
    torch.testing.assert_close(
        plain @ weight.T + bias, heads.logits(plain)[0], atol=1e-4, rtol=1e-4
    )


def test_folded_l2_head_keeps_the_direction(tmp_path):
    values, given, _ = blobs()
    features = store(tmp_path, values)
    heads, _ = train_heads(
        features,
        np.arange(400),
        given,
        4,
        np.zeros((1, 400), bool),
        ProbeConfig(epochs=5, normalise="l2", lr=0.1),
        seed=0,
        device=torch.device("cpu"),
        advance=lambda amount: None,
    )
    plain = torch.from_numpy(features.take(np.arange(400))).float()
    weight, bias = heads.folded(0)
    agree = (plain @ weight.T + bias).argmax(1) == heads.logits(plain)[0].argmax(1)
    assert agree.float().mean() > 0.9


def test_gce_resists_what_cross_entropy_learns_by_heart(tmp_path):
    values, given, true = blobs(n_samples=600, dim=200, noise=0.6)
    features = store(tmp_path, values)
    right = {}
    for loss in ("gce", "ce"):
        heads, curve = train_heads(
            features,
            np.arange(600),
            given,
            4,
            np.zeros((1, 600), bool),
            ProbeConfig(loss=loss, epochs=60, lr=3e-3, batch_size=64),
            seed=0,
            device=torch.device("cpu"),
            advance=lambda amount: None,
        )
        logits = heads.logits(torch.from_numpy(features.take(np.arange(600))).float())[0]
        right[loss] = float((logits.argmax(1).numpy() == true).mean())
        assert curve[-1] < curve[0]
    assert right["gce"] > right["ce"] + 0.03


def test_held_out_samples_do_not_touch_their_head(tmp_path):
    values, given, _ = blobs(n_samples=200)
    features = store(tmp_path, values)
    held_out = np.zeros((2, 200), bool)
    held_out[1, :50] = True

    def second_head(labels):
        heads, _ = train_heads(
            features,
            np.arange(200),
            labels,
            4,
            held_out,
            ProbeConfig(epochs=2, batch_size=32),
            seed=0,
            device=torch.device("cpu"),
            advance=lambda amount: None,
        )
        return heads

    changed = given.copy()
    changed[:50] = (changed[:50] + 1) % 4
    before, after = second_head(given), second_head(changed)
    assert torch.equal(before.weight_HDK[1], after.weight_HDK[1])
    assert not torch.equal(before.weight_HDK[0], after.weight_HDK[0])


def test_same_seed_same_bits_other_seed_other_bits(tmp_path):
    values, given, _ = blobs()
    features = store(tmp_path, values)

    def weights(seed):
        heads, _ = train_heads(
            features,
            np.arange(400),
            given,
            4,
            np.zeros((1, 400), bool),
            ProbeConfig(epochs=2, batch_size=64),
            seed=seed,
            device=torch.device("cpu"),
            advance=lambda amount: None,
        )
        return heads.weight_HDK

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))
