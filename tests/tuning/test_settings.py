"""Settings that would be wrong in silence: each is compared with what it claims to be."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tunable import run_job, weights_of

from shardsieve.config import SelectConfig, TuneConfig, load_config
from shardsieve.data.index import ShardRef
from shardsieve.data.location import RemotePath
from shardsieve.data.reason import Reason
from shardsieve.data.scores import Suggestions
from shardsieve.engines.processes import Group
from shardsieve.errors import BackboneError, ConfigError
from shardsieve.stages.tune import with_suggestions
from shardsieve.tuning.job import Beliefs
from shardsieve.tuning.optimisation import Optimisation
from shardsieve.tuning.order import draw_epoch
from shardsieve.tuning.refusals import refuse_small_cache
from shardsieve.tuning.reselection import SeenLosses
from shardsieve.tuning.targets import Mixing, hard_targets, losses, soft_targets

CPU = Group(torch.device("cpu"))
CE = TuneConfig(loss="ce")
BEST = SelectConfig(recipe="best")


def assert_close(one, other, atol=2e-5):
    ours, wanted = weights_of(one), weights_of(other)
    for name in wanted:
        torch.testing.assert_close(ours[name], wanted[name], rtol=1e-4, atol=atol)


def differ(one, other):
    pairs = zip(weights_of(one).values(), weights_of(other).values(), strict=True)
    return any(not a.equal(b) for a, b in pairs)


def test_parts_of_a_step_are_the_step(job):
    # SGD: its steps are as exact as the gradients; AdamW's divide by them.
    whole, parts = (job(optimiser="sgd", accumulate=n) for n in (1, 3))
    one, three = (run_job(made).facts["metrics"] for made in (whole, parts))
    assert_close(parts, whole)
    for ours, wanted in zip(three, one, strict=True):
        assert abs(ours["training_loss"] - wanted["training_loss"]) < 1e-5
        assert ours["lr"] == wanted["lr"]


def test_checkpointed_gradients_are_the_gradients(job):
    plain, saving = (job(optimiser="sgd", epochs=1, grad_checkpointing=on) for on in (False, True))
    run_job(plain), run_job(saving)
    assert_close(saving, plain, atol=1e-6)


def test_a_backbone_that_cannot_checkpoint_says_so(job, monkeypatch):
    import timm.models.resnet

    monkeypatch.delattr(timm.models.resnet.ResNet, "set_grad_checkpointing")
    with pytest.raises(BackboneError, match=r"leave out tune.grad_checkpointing"):
        run_job(job(grad_checkpointing=True))


def test_the_moving_average_is_what_is_saved(job, monkeypatch):
    from shardsieve.tuning import optimisation, trainer

    seen = []
    update = optimisation.Optimisation.update

    def watch(self):
        update(self)
        seen.append({k: v.clone() for k, v in self._network.state_dict().items()})

    monkeypatch.setattr(optimisation.Optimisation, "update", watch)
    validated = []
    accuracy = trainer.accuracy_of
    monkeypatch.setattr(
        trainer, "accuracy_of", lambda *given: validated.append(given[0]) or accuracy(*given)
    )
    made = job(ema_decay=0.5, epochs=1)
    made = replace(made, validation=made.samples)
    run_job(made)
    # timm's warm-up: the decay of update n is 1 - (1 + (n - 1))^(-2/3), 0.5 at most; 0 at first.
    name = "fc.weight"
    average = seen[0][name].clone()
    for number, state in enumerate(seen[1:], 2):
        decay = min(0.5, 1 - number ** (-2 / 3))
        average = decay * average + (1 - decay) * state[name]
    saved = weights_of(made, "last.safetensors")[name]
    torch.testing.assert_close(saved, average, rtol=1e-5, atol=1e-7)
    assert not saved.equal(seen[-1][name])
    assert validated[0].state_dict()[name].equal(saved), "another network was validated"


def test_the_learning_rate_warms_up_falls_and_is_layered(job):
    network = torch.nn.Linear(4, 4)
    config = TuneConfig(epochs=4, lr=1.0, warmup_epochs=1)
    optimisation = Optimisation(network, config, CPU, fp16=False)
    rates = []
    for at in (0.0, 0.5, 1.0, 2.0, 3.999):
        optimisation.begin(at)
        rates.append(optimisation.lr)
    wanted = [0, 0.5, *(0.5 * (1 + math.cos(math.pi * at / 4)) for at in (1.0, 2.0, 3.999))]
    assert rates == pytest.approx(wanted, abs=1e-9)
    constant = Optimisation(network, config.model_copy(update={"schedule": "constant"}), CPU, False)
    for at, rate in ((0.5, 0.5), (1.0, 1.0), (3.9, 1.0)):
        constant.begin(at)
        assert constant.lr == pytest.approx(rate)
    flat, layered = (job(epochs=1, layer_decay=decay) for decay in (None, 0.01))
    run_job(flat), run_job(layered)
    ours, wanted_weights = weights_of(layered), weights_of(flat)
    first = "conv1.weight" if "conv1.weight" in ours else "conv1.0.weight"
    before = load_file(layered.embed.checkpoint)[first]
    moved = (ours[first] - before).abs().mean()
    assert moved < 0.05 * (wanted_weights[first] - before).abs().mean()


def test_gradients_are_clipped():
    network = torch.nn.Linear(3, 1, bias=False)
    before = network.weight.detach().clone()
    config = TuneConfig(optimiser="sgd", lr=1.0, clip_norm=0.5, weight_decay=0, schedule="constant")
    optimisation = Optimisation(network, config, CPU, fp16=False)
    optimisation.begin(0.0)
    optimisation.backward(100 * network(torch.ones(1, 3)).sum())
    optimisation.update()
    # timm gives SGD Nesterov momentum: the first step is 1.9 times the gradient.
    assert (network.weight - before).norm().item() == pytest.approx(1.9 * 0.5, rel=1e-4)


def test_losses_are_the_fields():
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([0, 1, 2, 3, 0])
    hard = hard_targets(label, 4, 0.0)
    torch.testing.assert_close(
        losses(logits, hard, CE),
        torch.nn.functional.cross_entropy(logits, label, reduction="none"),
    )
    torch.testing.assert_close(
        losses(logits, hard_targets(label, 4, 0.1), CE),
        torch.nn.functional.cross_entropy(logits, label, reduction="none", label_smoothing=0.1),
    )
    p = logits.softmax(1)[torch.arange(5), label]
    gce = losses(logits, hard, TuneConfig(loss="gce", q=0.7))
    torch.testing.assert_close(gce, (1 - p**0.7) / 0.7)
    nearly = losses(logits.double(), hard.double(), TuneConfig(loss="gce", q=1e-6))
    torch.testing.assert_close(nearly, -p.double().log(), rtol=1e-4, atol=1e-5)


def test_soft_targets_are_what_the_selection_believes():
    beliefs = Beliefs(
        np.array([0.7, 0.1, np.nan, 0.9], np.float32),
        np.array([2, 2, -1, 1], np.int32),
        np.array([0.2, 0.8, np.nan, 0.9], np.float32),
    )
    label = torch.tensor([0, 1, 3, 1])
    target = soft_targets(beliefs, np.arange(4), label, 4, 0.0)
    wanted = [
        [0.7 + 0.025, 0.025, 0.2 + 0.025, 0.025],
        [0.025, 0.1 + 0.025, 0.8 + 0.025, 0.025],
        # Nobody judged it, or people did: as it is.
        [0, 0, 0, 1],
        # What is suggested is what was given: counted once.
        [0.025, 0.9 + 0.025, 0.025, 0.025],
    ]
    torch.testing.assert_close(target, torch.tensor(wanted))
    smooth = soft_targets(beliefs, np.arange(4), label, 4, 0.1)
    torch.testing.assert_close(smooth.sum(1), torch.ones(4))


def suggestions(n_samples):
    reason = np.full(n_samples, Reason.KEPT, np.uint8)
    reason[:6] = Reason.HIGH_LOSS
    reason[4], reason[5] = Reason.REMOVED_BY_REVIEW, Reason.UNDECODABLE
    confidence = np.full(n_samples, 0.99, np.float32)
    confidence[1] = 0.5
    suggested = np.full(n_samples, 2, np.int32)
    suggested[2] = -1
    p_clean = np.full(n_samples, 0.25, np.float32)
    return Suggestions(reason, p_clean, suggested, confidence)


def test_corrected_labels_come_in_where_the_selection_is_sure(job):
    made = job(labels="corrected", job__select=BEST)
    kept, usable = made.kept_N.copy(), made.samples.usable_N.copy()
    kept[:6] = False
    usable[5] = False
    made = replace(made, kept_N=kept, samples=replace(made.samples, usable_N=usable))
    corrected = with_suggestions(made, suggestions(75))
    # 1 is unsure, 2 has no suggestion, 4 was looked at, 5 cannot be read.
    assert np.flatnonzero(corrected.kept_N[:6]).tolist() == [0, 3]
    assert corrected.samples.label_N[[0, 3]].tolist() == [2, 2]
    assert (corrected.samples.label_N[6:] == made.samples.label_N[6:]).all()
    assert corrected.samples.label_N[1] == made.samples.label_N[1]


def test_soft_labels_leave_decided_samples_alone(job):
    made = job(labels="soft", job__select=BEST)
    decided = made.decided_N.copy()
    decided[3] = True
    soft = with_suggestions(replace(made, decided_N=decided), suggestions(75))
    assert np.isnan(soft.beliefs.given_N[3]) and soft.beliefs.given_N[4] == np.float32(0.25)
    assert (soft.samples.label_N == made.samples.label_N).all()
    plain = job()
    run_job(soft), run_job(plain)
    assert differ(soft, plain)
    turn = replace(made, select=SelectConfig(recipe="turn"))
    with pytest.raises(ConfigError, match=r"select.recipe = best"):
        with_suggestions(turn, suggestions(75))


def test_without_a_suggestion_all_stays_as_given(job):
    made = job(labels="auto", job__select=BEST)
    assert made.config.labels == "corrected"
    nothing = Suggestions(
        np.zeros(75, np.uint8),
        np.ones(75, np.float32),
        np.full(75, -1, np.int32),
        np.full(75, np.nan, np.float32),
    )
    same = with_suggestions(made, nothing)
    assert (same.samples.label_N == made.samples.label_N).all()
    assert (same.kept_N == made.kept_N).all()


def test_what_auto_stands_for():
    turn, best = TuneConfig().for_recipe("turn"), TuneConfig().for_recipe("best")
    assert (turn.loss, turn.labels, turn.balance) == ("ce", "given", "smallest")
    assert (best.loss, best.labels, best.balance) == ("gce", "corrected", "all")
    asked = TuneConfig(loss="ce", labels="soft").for_recipe("best")
    assert (asked.loss, asked.labels, asked.balance) == ("ce", "soft", "all")


def test_every_image_of_an_odd_batch_has_its_target():
    mixing = Mixing(TuneConfig(mixup=1.0, label_smoothing=0.1), 3)
    images, label = torch.rand(5, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1])
    before = images.clone()
    np.random.seed(0)  # noqa: NPY002
    mixed, target = mixing(images, label)
    assert images.equal(before), "what was handed over has changed"
    assert mixed[4].equal(images[4]) and not mixed[0].equal(images[0])
    torch.testing.assert_close(target.sum(1), torch.ones(5))
    torch.testing.assert_close(target[4], hard_targets(label, 3, 0.1)[4])
    # mixed = lam x + (1 - lam) x', and so is its target, but for the smoothing.
    lam = ((mixed[0] - images[3]) / (images[0] - images[3])).median()
    torch.testing.assert_close(
        target[1], lam * hard_targets(label, 3, 0.1)[1] + (1 - lam) * hard_targets(label, 3, 0.1)[2]
    )
    alone, target = mixing(images[:1], label[:1])
    assert alone.equal(images[:1]) and target.shape == (1, 3)


def test_losses_seen_in_training_replace_those_of_the_probe():
    seen = SeenLosses(np.array([5.0, 5.0, np.nan, 5.0], np.float32), CPU)
    seen.note(torch.tensor([0, 2]), torch.tensor([1.0, 2.0]))
    seen.note(torch.tensor([3]), torch.tensor([3.0]))
    assert seen.merge() == 3
    assert seen.known_N.tolist() == [1.0, 5.0, 2.0, 3.0]
    assert seen.merge() == 0
    assert seen.known_N.tolist() == [1.0, 5.0, 2.0, 3.0]


def test_what_each_recipe_draws(job):
    made = job(balance="auto")
    best = job(balance="auto", job__select=BEST)
    counts = np.bincount(made.samples.label_N)
    turn = draw_epoch(made, made.kept_N, 0)
    assert turn.drawn == 3 * counts.min() and turn.per_class == counts.min()
    assert draw_epoch(best, made.kept_N, 0).drawn == 75
    capped = replace(best, config=best.config.model_copy(update={"max_samples": 9}))
    assert draw_epoch(capped, made.kept_N, 0).drawn == 9
    no_second = made.kept_N & (made.samples.label_N != 1)
    assert draw_epoch(best, no_second, 0).absent == [1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["tune.mixup=0.2", "tune.labels=soft"], "choose one of them"),
        (["tune.cutmix=0.2", "tune.reselect=running"], "no mixup or cutmix"),
        (["tune.processes=0"], "greater than or equal to 1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, settings)


def test_an_unknown_optimiser_is_refused():
    config = TuneConfig(optimiser="adamwx")
    with pytest.raises(ConfigError, match="timm has no such optimiser; it has"):
        Optimisation(torch.nn.Linear(1, 1), config, CPU, fp16=False)


def test_how_it_is_come_by_does_not_make_it_another_result(tmp_path):
    from shardsieve.identity import BY_NAME, Identities

    def key(*overrides):
        identities = Identities(load_config(None, overrides), [], lambda stage: stage)
        return identities.of(BY_NAME["tune"])

    same = key("tune.processes=4", "tune.checkpoint_minutes=1", "tune.tensorboard=true")
    assert same == key()
    assert key("tune.batch_size=64") != key()


def test_remote_shards_that_the_cache_cannot_hold_together(monkeypatch):
    monkeypatch.setenv("SHARDSIEVE_CACHE_GB", "2")
    here = [ShardRef(Path(f"/data/{n}.tar"), 10**10, 0) for n in range(3)]
    there = [ShardRef(RemotePath(f"s3://bucket/{n}.tar"), 700_000_000, 0) for n in range(3)]
    unknown = ShardRef(RemotePath("pipe:cat a.tar"), -1, 0)
    refuse_small_cache([*here, *there[:2], unknown])
    with pytest.raises(ConfigError, match=r"2\.1 GB of remote ones, and the cache holds 2\.0"):
        refuse_small_cache([*here, *there])
