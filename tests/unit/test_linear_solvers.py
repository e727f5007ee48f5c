"""The solvers without a seed: what they promise, held against scikit-learn and plain algebra."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from shardsieve.config import ProbeConfig
from shardsieve.models.probe import HeadSpec, train_heads


def noisy(n_samples=1500, dim=20, n_classes=6, noise=0.4, spread=0.8):
    rng = np.random.default_rng(3)
    true = rng.integers(0, n_classes, n_samples)
    features = rng.normal(0, spread, (n_classes, dim))[true] + rng.normal(0, 1, (n_samples, dim))
    given = np.where(rng.random(n_samples) < noise, rng.integers(0, n_classes, n_samples), true)
    return features.astype(np.float32), given.astype(np.int32), true


def solve(solver, values, given, specs, **settings):
    config = ProbeConfig(solver=solver, **settings)
    return train_heads(values, given, specs, config, n_classes=6)


def objective(heads, head, spec, values, given):
    """The penalised mean GCE in f64, from its definition."""
    logits = heads.logits(torch.from_numpy(values))[:, head].double()
    log_p = torch.log_softmax(logits, 1)[torch.arange(len(given)), given.astype(int)]
    loss = -log_p if spec.q == 0 else -torch.expm1(spec.q * log_p) / spec.q
    penalty = spec.l2 * 6**-spec.q / 2 * heads.weight_DHK[:, head].double().square().sum()
    return float(loss.mean() + penalty)


@pytest.mark.parametrize("normalise", ["standardise", "none", "l2"])
def test_mm_never_raises_its_objective(normalise):
    values, given, _ = noisy()
    specs = [HeadSpec(q=q, l2=l2) for q in (0.0, 0.7, 1.0) for l2 in (1e-2, 1e-4)]
    heads, curve = solve("mm", values, given, specs, normalise=normalise, epochs=30)
    assert len(curve) > 3
    assert (np.diff(curve, axis=0) <= 0).all()
    assert (curve[-1] < curve[0]).all()
    for head, spec in enumerate(specs):
        assert curve[-1, head] == pytest.approx(
            objective(heads, head, spec, values, given), rel=1e-4
        )


def test_mm_ends_where_the_gradient_vanishes():
    values, given, _ = noisy()
    spec = HeadSpec(q=0.7, l2=1e-2)
    heads, _ = solve("mm", values, given, [spec], epochs=100)
    weight = heads.weight_DHK[:, 0].double().requires_grad_()
    scaled = heads.scaling.apply(torch.from_numpy(values)).double()
    logits = scaled @ weight + heads.bias_HK[0].double()
    log_p = torch.log_softmax(logits, 1)[torch.arange(len(given)), given.astype(int)]
    total = (-torch.expm1(0.7 * log_p) / 0.7).mean() + 5e-3 * 6**-0.7 * weight.square().sum()
    (gradient,) = torch.autograd.grad(total, weight)
    assert gradient.norm() < 3e-3


def test_mm_without_q_is_logistic_regression():
    values, given, _ = noisy()
    heads, _ = solve("mm", values, given, [HeadSpec(q=0.0, l2=1e-2)], epochs=50)
    scaled = heads.scaling.apply(torch.from_numpy(values)).numpy()
    oracle = LogisticRegression(C=1 / (1e-2 * len(given)), tol=1e-8, max_iter=500)
    oracle.fit(scaled, given)
    p = torch.softmax(heads.logits(torch.from_numpy(values))[:, 0], 1).numpy()
    np.testing.assert_allclose(p, oracle.predict_proba(scaled), atol=0.01)


def test_mm_resists_noise_that_cross_entropy_learns():
    values, given, true = noisy(n_samples=3000, noise=0.6)
    # The same l2: what differs is q alone.
    specs = [HeadSpec(q=q, l2=0.01) for q in (0.7, 0.0)]
    heads, _ = solve("mm", values, given, specs)
    right = (heads.logits(torch.from_numpy(values)).argmax(-1).numpy() == true[:, None]).mean(0)
    assert right[0] > right[1] + 0.02


def test_ridge_is_ridge_up_to_one_factor():
    values, given, _ = noisy()
    heads, curve = solve("ridge", values, given, [HeadSpec()], normalise="none")
    assert curve.shape == (0, 1)
    weight = heads.weight_DHK[:, 0].numpy().astype(np.float64)
    one_hot = np.eye(6)[given]
    # Some penalty makes scikit-learn's the same but for the factor.
    fits = []
    for alpha in np.logspace(-4, 5, 200):
        other = Ridge(alpha=alpha).fit(values, one_hot).coef_.T
        cosine = (weight * other).sum() / np.linalg.norm(weight) / np.linalg.norm(other)
        fits.append(cosine)
    assert max(fits) > 0.999
    logits = heads.logits(torch.from_numpy(values))[:, 0]
    loss = [
        float(torch.nn.functional.cross_entropy(logits * factor, torch.from_numpy(given).long()))
        for factor in (0.8, 1.0, 1.25)
    ]
    assert loss[1] <= min(loss)


def test_ridge_penalty_fights_what_is_learned_by_heart():
    # 300 features for 400 samples: least squares without a penalty follows the noise.
    values, given, true = noisy(n_samples=400, dim=300, noise=0.3)
    heads, _ = solve("ridge", values, given, [HeadSpec()])
    right = (heads.logits(torch.from_numpy(values))[:, 0].argmax(1).numpy() == true).mean()
    plain = Ridge(alpha=1e-6).fit(values, np.eye(6)[given])
    assert right > (plain.predict(values).argmax(1) == true).mean() + 0.02


@pytest.mark.parametrize("solver", ["mm", "ridge"])
def test_samples_in_another_order_give_the_same_heads(solver):
    values, given, _ = noisy()
    order = np.random.default_rng(0).permutation(len(given))
    first, _ = solve(solver, values, given, [HeadSpec(l2=1e-2)])
    second, _ = solve(solver, values[order], given[order], [HeadSpec(l2=1e-2)])
    torch.testing.assert_close(first.weight_DHK, second.weight_DHK, rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("solver", ["mm", "ridge", "minibatch"])
def test_one_class_and_absent_classes(solver):
    values, given, _ = noisy(n_samples=60)
    heads, _ = solve(solver, values, np.full(60, 2, np.int32), [HeadSpec()])
    assert torch.isfinite(heads.weight_DHK).all()
    logits = heads.logits(torch.from_numpy(values))[:, 0]
    # Of a gradient that is all rounding AdamW makes steps as long as any.
    assert solver == "minibatch" or (logits.argmax(1) == 2).all()
    absent, _ = solve(solver, values, np.minimum(given, 3), [HeadSpec()])
    assert torch.isfinite(absent.weight_DHK).all()


def test_one_penalty_serves_few_classes_and_many():
    # The default without its K^-q is too much for 60 classes: the heads decay round by round.
    rng = np.random.default_rng(0)
    true = rng.integers(0, 60, 6000)
    centres = rng.normal(0, 0.5, (60, 64))
    features = (centres[true] + rng.normal(0, 1, (6000, 64))).astype(np.float32)
    given = np.where(rng.random(6000) < 0.4, rng.integers(0, 60, 6000), true).astype(np.int32)
    right = []
    train_heads(
        features,
        given,
        [HeadSpec(), HeadSpec(l2=HeadSpec().l2 * 60**0.7)],
        ProbeConfig(solver="mm", epochs=6),
        n_classes=60,
        on_epoch=lambda heads, _: right.append(
            (heads.logits(torch.from_numpy(features)).argmax(-1).numpy() == true[:, None]).mean(0)
        ),
    )
    follows, fixed = right[-1]
    assert follows > right[0][0] - 0.01
    assert fixed < follows - 0.1
