"""The peers of `bench quality` on blobs whose wrong labels are plain to see."""

import numpy as np
import pytest
from bench.noise import realised_rate, symmetric, true_transition
from bench.peers import PEERS, Case, Neighbours, confident_joint, hoc, judge, nearest
from sklearn.metrics import roc_auc_score

pytest.importorskip("cleanlab", reason="cleanlab is not installed")


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 900)
    features = (4 * np.eye(3, 12)[truth] + rng.normal(0, 1, (900, 12))).astype(np.float32)
    given = symmetric(truth, 0.3, 3, 0)
    logits = (3 * np.eye(3)[truth] + rng.normal(0, 0.7, (900, 3))).astype(np.float32)
    loss = -(logits - np.log(np.exp(logits).sum(1, keepdims=True)))[np.arange(900), given]
    return truth, Case(
        features, given, 3, logits, loss, realised_rate(given, truth), 0, Neighbours(features)
    )


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_finds_plain_errors(case, name):
    truth, inputs = case
    verdict = judge(PEERS[name], inputs)
    right = inputs.label_N == truth
    assert roc_auc_score(right, verdict.p_clean_N) > 0.95
    assert (verdict.keep_N == right).mean() > 0.9


@pytest.mark.parametrize("estimate", [confident_joint, lambda case: hoc(case)[0]])
def test_estimated_matrices_come_close(case, estimate):
    truth, inputs = case
    found = estimate(inputs)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-4)
    assert np.abs(found - true_transition(inputs.label_N, truth, 3)).max() < 0.12


def test_nearest_leaves_out_itself_also_among_copies():
    points = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    found = nearest(points, 3)
    assert all(row not in found[row] for row in range(12))
    assert (found // 4 == np.arange(12)[:, None] // 4).all()
