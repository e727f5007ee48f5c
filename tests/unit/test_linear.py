"""The linear heads: the loss and its gradient, scaling, folding, and what training does."""

import numpy as np
import pytest
import torch

from shardsieve.config import ProbeConfig
from shardsieve.data.features import FeatureStore, write_shard
from shardsieve.models.probe import HeadSpec, train_heads
from shardsieve.models.probe.gradient import LossGradient, gce_
from shardsieve.models.probe.scaling import fit_scaling
from shardsieve.models.probe.source import ArrayFeatures

CPU = torch.device("cpu")


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
    return features.astype(np.float32), given.astype(np.int32), true


PLAIN = HeadSpec()


def train(features, labels, specs=(PLAIN,), n_classes=4, **settings):
    options = {
        name: settings.pop(name)
        for name in ("rows", "fold_N", "weight", "seed", "on_epoch")
        if name in settings
    }
    config = ProbeConfig(**settings)
    return train_heads(features, labels, list(specs), config, n_classes=n_classes, **options)


def predicted(heads, features_ND):
    return heads.logits(torch.from_numpy(features_ND)).argmax(-1).numpy()


@pytest.mark.parametrize("q", [0.0, 0.3, 0.7, 1.0])
def test_gradient_is_that_of_the_loss(q):
    # Of the parameters, through both products, the op and the weights, in two pieces.
    torch.manual_seed(0)
    inputs, labels = torch.randn(9, 6), torch.randint(0, 5, (9,), dtype=torch.int32)
    weights = torch.rand(9, 2)
    parameters = torch.randn(7, 2 * 5)
    exact = parameters.double().requires_grad_()
    logits = (inputs.double() @ exact[:-1] + exact[-1]).view(9, 2, 5)
    p = torch.softmax(logits, -1)[torch.arange(9), :, labels.long()]
    plain = -torch.log(p) if q == 0 else (1 - p**q) / q
    (expected,) = torch.autograd.grad((plain * weights).sum(), exact)
    losses = LossGradient(torch.full((2,), q), 5, dtype=torch.float32, backend="cpu")
    gradient = torch.full_like(parameters, np.nan)
    seen = [
        losses.add_to(
            gradient, inputs[part], parameters, labels[part], weights[part], first=part.start == 0
        ).clone()
        for part in (slice(0, 5), slice(5, 9))
    ]
    torch.testing.assert_close(torch.cat(seen), plain.detach().float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_torch_does_what_the_op_does(weighted):
    # What runs where torch has a GPU and CuPy is missing.
    from shardsieve_kernels.probe_step import probe_step

    torch.manual_seed(0)
    logits, labels = 5 * torch.randn(20, 3, 7), torch.randint(0, 7, (20,))
    logits[0, 0] = torch.tensor([1e4, -1e4, 0, 0, 0, 0, 0])
    q_H, weights = torch.tensor([0.0, 0.7, 1.0]), torch.rand(20, 3) if weighted else None
    want = probe_step(logits, labels, q_H, weights_BH=weights, backend="reference")
    loss = gce_(logits, labels, q_H, weights)
    torch.testing.assert_close(loss, want.loss_BH, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits, want.gradient_BHK, rtol=1e-5, atol=1e-6)


def test_standardise_far_from_the_origin():
    rng = np.random.default_rng(0)
    values = rng.normal(100, 0.5, (500, 6)).astype(np.float16)
    scaling = fit_scaling(ArrayFeatures(values), np.arange(500), "standardise", CPU)
    scaled = scaling.apply(torch.from_numpy(values).float())
    assert scaled.mean(0).abs().max() < 1e-3
    # 1 less the share of the mean variance that is added.
    expected = torch.full((6,), 1 / 1.01)
    torch.testing.assert_close(scaled.var(0, correction=0), expected, atol=5e-3, rtol=0)


def test_feature_that_hardly_varies_is_not_blown_up():
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, (500, 4))
    values[:, 1] = 7
    values[:, 2] = 1e-4 * rng.normal(0, 1, 500)
    scaling = fit_scaling(ArrayFeatures(values), np.arange(500), "standardise", CPU)
    scaled = scaling.apply(torch.from_numpy(values).float())
    assert (scaled[:, 1] == 0).all()
    assert scaled[:, 2].abs().max() < 0.01
    assert float(scaling.scale_D.max()) < 20


@pytest.mark.parametrize("solver", ["minibatch", "mm", "ridge"])
@pytest.mark.parametrize("mode", ["standardise", "none"])
def test_folded_head_gives_the_same_logits_on_plain_features(mode, solver):
    values, given, _ = blobs()
    heads, _ = train(values, given, epochs=3, normalise=mode, solver=solver)
    plain = torch.from_numpy(values)
    weight, bias = heads.folded(0)
    torch.testing.assert_close(
        plain @ weight.T + bias, heads.logits(plain)[:, 0], atol=1e-3, rtol=1e-4
    )


def test_folded_l2_head_keeps_the_direction():
    values, given, _ = blobs()
    heads, _ = train(values, given, [HeadSpec(lr=0.1)], epochs=5, normalise="l2")
    weight, bias = heads.folded(0)
    plain = torch.from_numpy(values)
    agree = (plain @ weight.T + bias).argmax(1).numpy() == predicted(heads, values)[:, 0]
    assert agree.mean() > 0.9


def test_gce_resists_what_cross_entropy_learns_by_heart():
    values, given, true = blobs(n_samples=600, dim=200, noise=0.6)
    specs = [HeadSpec(q=q, lr=3e-3) for q in (0.7, 0.0)]
    heads, curve = train(values, given, specs, epochs=60, batch_size=64)
    gce, ce = (predicted(heads, values) == true[:, None]).mean(0)
    assert (curve[-1] < curve[0]).all()
    assert gce > ce + 0.03


def test_steps_are_those_of_adamw_with_a_cosine():
    values, given, _ = blobs()
    spec = HeadSpec(q=0.7, lr=0.01, weight_decay=0.1)
    heads, _ = train(values, given, [spec], epochs=6, batch_size=400, normalise="none")
    inputs, labels = torch.from_numpy(values).double(), torch.from_numpy(given).long()
    inputs = torch.cat([inputs, torch.ones(400, 1)], 1)
    weight = torch.zeros(13, 4, dtype=torch.float64)
    decay = torch.tensor([0.1] * 12 + [0.0])[:, None]
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    # Loshchilov & Hutter 2019, algorithm 2, as torch.optim.AdamW has it.
    for step in range(6):
        weight.requires_grad_()
        p = torch.softmax(inputs @ weight, 1)[torch.arange(400), labels]
        (gradient,) = torch.autograd.grad(((1 - p**0.7) / 0.7).mean(), weight)
        lr = 0.01 * (1 + np.cos(np.pi * step / 6)) / 2
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        unbiased = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
        weight = weight.detach() * (1 - lr * decay)
        weight -= lr * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
    torch.testing.assert_close(heads.weight_DHK[:, 0].double(), weight[:12], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(heads.bias_HK[0].double(), weight[12], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("solver", ["minibatch", "mm", "ridge"])
def test_heads_side_by_side_are_the_heads_alone(solver):
    values, given, _ = blobs()
    fold_N = np.arange(400) % 3
    specs = [
        HeadSpec(l2=1e-2),
        HeadSpec(q=0.0, lr=3e-3, l2=1e-2),
        HeadSpec(q=0.3, weight_decay=0.5, l2=3e-2),
        HeadSpec(fold=1, seed=5, l2=1e-2),
    ]
    epochs = 50 if solver == "mm" else 4
    settings = {"epochs": epochs, "batch_size": 100, "solver": solver, "fold_N": fold_N}
    together, curve = train(values, given, specs, **settings)
    for head, spec in enumerate(specs):
        alone, own_curve = train(values, given, [spec], **settings)
        # ridge chooses its penalty for the first head; mm starts there, ends near its optimum.
        tolerance = {"minibatch": 1e-4, "ridge": 0.05, "mm": 0.05}[solver]
        torch.testing.assert_close(
            together.weight_DHK[:, head], alone.weight_DHK[:, 0], rtol=tolerance, atol=tolerance
        )
        np.testing.assert_allclose(curve[-1:, head], own_curve[-1:, 0], rtol=1e-3)


@pytest.mark.parametrize("solver", ["minibatch", "mm", "ridge"])
def test_held_out_fold_does_not_touch_its_head(solver):
    values, given, _ = blobs(n_samples=200)
    fold_N = (np.arange(200) >= 50).astype(np.int8)
    # The penalty of ridge is chosen for the first head.
    specs = [HeadSpec(fold=0), HeadSpec()]
    settings = {"epochs": 2, "batch_size": 32, "fold_N": fold_N, "solver": solver}
    changed = given.copy()
    changed[:50] = (changed[:50] + 1) % 4
    before, _ = train(values, given, specs, **settings)
    after, _ = train(values, changed, specs, **settings)
    torch.testing.assert_close(
        before.weight_DHK[:, 0], after.weight_DHK[:, 0], rtol=1e-5, atol=1e-6
    )
    assert (before.weight_DHK[:, 1] - after.weight_DHK[:, 1]).abs().max() > 1e-3


@pytest.mark.parametrize("solver", ["minibatch", "mm", "ridge"])
@pytest.mark.parametrize("per_head", [False, True])
def test_weight_zero_is_absence_and_two_is_twice(solver, per_head):
    values, given, _ = blobs(n_samples=300)
    weight = np.ones(300, np.float32)
    weight[:100], weight[100:200] = 0, 2
    rows = np.concatenate([np.arange(100, 200), np.arange(100, 200), np.arange(200, 300)])
    # One batch, so that the optimisers see the same gradients.
    settings = {"epochs": 5, "batch_size": 10_000, "solver": solver, "normalise": "none"}
    shape = weight[None] if per_head else weight
    weighted, _ = train(values, given, weight=shape, **settings)
    repeated, _ = train(values[rows], given[rows], **settings)
    torch.testing.assert_close(weighted.weight_DHK, repeated.weight_DHK, rtol=0.02, atol=0.01)


def test_labels_weights_and_folds_that_do_not_fit_are_refused():
    values, given, _ = blobs()
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 3\), found 0 to 3"):
        train(values, given, n_classes=3)
    with pytest.raises(ValueError, match="fold_N was not given"):
        train(values, given, [HeadSpec(fold=1)])
    with pytest.raises(ValueError, match="finite and not negative"):
        train(values, given, weight=np.full(400, -1.0))
    with pytest.raises(ValueError, match=r"weight must be \(400,\)"):
        train(values, given, weight=np.ones((3, 400)))
    with pytest.raises(TypeError, match="floats, found int64"):
        train(values.astype(np.int64), given)


def test_every_epoch_shows_the_heads_as_they_are():
    values, given, _ = blobs()
    seen = []

    def look(heads, epoch):
        seen.append((epoch, predicted(heads, values)[:, 0], heads.weight_DHK.clone()))

    heads, _ = train(values, given, epochs=3, batch_size=64, on_epoch=look)
    assert [epoch for epoch, *_ in seen] == [0, 1, 2]
    assert torch.equal(seen[-1][2], heads.weight_DHK)
    assert not torch.equal(seen[0][2], seen[1][2])


@pytest.mark.parametrize("solver", ["minibatch", "mm", "ridge"])
def test_same_seed_same_bits(solver):
    values, given, _ = blobs()

    def weights(seed):
        settings = {"epochs": 2, "batch_size": 64, "solver": solver}
        return train(values, given, seed=seed, **settings)[0].weight_DHK

    assert torch.equal(weights(0), weights(0))
    # Only minibatch shuffles.
    assert torch.equal(weights(0), weights(1)) == (solver != "minibatch")


def test_seeded_heads_start_apart_and_end_alike():
    values, given, _ = blobs(noise=0.1)
    specs = [HeadSpec(lr=0.01, seed=seed) for seed in (1, 2)]
    heads, _ = train(values, given, specs, epochs=20, batch_size=64)
    first, second = heads.weight_DHK.unbind(1)
    assert not torch.equal(first, second)
    assert (predicted(heads, values)[:, 0] == predicted(heads, values)[:, 1]).mean() > 0.95


def test_a_store_and_its_array_are_the_same(tmp_path):
    values, given, _ = blobs()
    half = values.astype(np.float16)
    rows = np.arange(0, 400, 2)
    from_store, _ = train(store(tmp_path, values), given, rows=rows, epochs=2)
    from_array, _ = train(half, given, rows=rows, epochs=2)
    assert torch.equal(from_store.weight_DHK, from_array.weight_DHK)
