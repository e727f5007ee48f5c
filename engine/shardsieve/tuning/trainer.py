"""The epochs of a fine-tuning, from wherever an interrupted call left off.

Shapes: N samples, B batch, K classes.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from safetensors.torch import load
from torch import nn

from shardsieve.data.record import StageResult
from shardsieve.engines.processes import Group
from shardsieve.errors import BackboneError, DataError
from shardsieve.models.backbone import load_classifier
from shardsieve.models.tuned import save_tuned
from shardsieve.progress import Progress
from shardsieve.tuning.checkpoint import Due, read_state, write_state
from shardsieve.tuning.evaluation import Reading, accuracy_of, losses_of
from shardsieve.tuning.job import Job
from shardsieve.tuning.metrics import MetricsLog
from shardsieve.tuning.optimisation import Optimisation
from shardsieve.tuning.order import Epoch, draw_epoch
from shardsieve.tuning.position import Position
from shardsieve.tuning.randomness import caller_undisturbed, seed_everything
from shardsieve.tuning.reselection import SeenLosses, reselect
from shardsieve.tuning.steps import Steps

MODEL, LAST = "model.safetensors", "last.safetensors"


def train(job: Job, group: Group, progress: Progress, threads: int) -> StageResult:
    """Fine-tunes the whole network from the probe's head on the clean samples.

    TURN step 3: every epoch draws the same number of clean samples from each class, as many as the
    smallest class has; before every epoch but the first the mixtures are fitted anew to the losses
    of the network as it then is (`config.balance`, `config.reselect`).

    Args:
        job: Samples, settings, and where results go: `model.safetensors`, the best epoch by
            validation or else the last; `last.safetensors` where the two are told apart; and
            `metrics.jsonl`.
        group: The processes that share each step; each of them calls this.
        progress: Where to report.
        threads: With how many each process computes on a CPU.

    Raises:
        DataError: Reselection left no clean sample, the loss is no number, or no validation image
            can be decoded.
        BackboneError: The network has no linear classifier, or cannot checkpoint gradients.
    """
    with caller_undisturbed(threads):
        trainer = _Trainer(job, group, progress)
        try:
            return trainer.run()
        finally:
            trainer.log.close()


class _Trainer:
    """One process's part of a fine-tuning."""

    def __init__(self, job: Job, group: Group, progress: Progress) -> None:
        seed_everything(job.seed)
        self._job, self._group, self._progress = job, group, progress
        self._network, preprocessing = _network(job, group)
        self._reading = Reading(
            preprocessing, job.precision, group, -(-job.workers // group.world), progress
        )
        self._optimisation = Optimisation(
            self._network, job.config, group, fp16=job.precision == "fp16"
        )
        self._seen = SeenLosses(job.loss_N, group)
        self._position = Position(job.kept_N)
        state = read_state(job.out)
        if state is not None:
            self._take_up(state)
        self.log = MetricsLog(
            job.out,
            tensorboard=job.config.tensorboard and group.leads,
            step=self._position.updates,
        )
        if job.config.compile:
            self._network.compile()
        self._steps = Steps(
            job, self._reading, group.wrap(self._network), self._network, self._optimisation
        )

    def run(self) -> StageResult:
        """Trains the epochs that are left."""
        config, position = self._job.config, self._position
        due = Due(config.checkpoint_minutes, config.checkpoint_steps, self._group)
        while position.epoch < config.epochs:
            if position.step == 0:
                self._reselect()
            epoch = self._train_epoch(due)
            if self._job.validation is not None:
                # Validation may take long, and the steps before it are not to be done again.
                self._save_state()
            self._finish_epoch(epoch)
            self._save_state()
        return self._result()

    def _reselect(self) -> None:
        job, position = self._job, self._position
        how = job.config.reselect
        # The mixtures of `turn` are fitted anew; what `best` kept stays, as its p_clean is surer.
        if not position.epoch or how == "never" or job.select.recipe != "turn":
            return
        if how == "epoch":
            network = self._optimisation.averaged
            losses_N = losses_of(network, self._reading, job.samples, job.backend)
            position.images += int(job.samples.usable_N.sum())
        else:
            losses_N = self._seen.known_N.cpu().numpy()
        position.kept_N = reselect(job, losses_N, self._group)
        if not position.kept_N.any():
            raise DataError(f"epoch {position.epoch + 1}: reselection left no clean sample")

    def _train_epoch(self, due: Due) -> Epoch:
        job, position, start = self._job, self._position, time.monotonic()
        epoch = draw_epoch(job, position.kept_N, position.epoch)
        if epoch.absent and not position.step:
            names = ", ".join(job.classes[label] for label in epoch.absent)
            position.notes.append(f"epoch {position.epoch + 1}: no clean sample of: {names}")
        done = sum(map(len, epoch.steps[: position.step]))
        stage = f"tune {position.epoch + 1}/{job.config.epochs}"
        with self._progress.track(stage, epoch.drawn, "images", done) as advance:
            for outcome in self._steps.run(epoch.steps, position.epoch, position.step):
                self._seen.note(outcome.rows, outcome.given_losses)
                position.count(outcome)
                advance(len(epoch.steps[position.step]))
                position.step += 1
                position.updates += 1
                if self.log.wants(position.updates):
                    loss = float(outcome.loss_sum) / max(len(outcome.rows), 1)
                    self.log.step(position.updates, loss=loss, lr=self._optimisation.lr)
                if due(position.step) and position.step < len(epoch.steps):
                    position.seconds += time.monotonic() - start
                    start = time.monotonic()
                    self._save_state()
        if self._group.device.type == "cuda":
            # The last steps are still under way there.
            torch.cuda.synchronize(self._group.device)
        position.seconds += time.monotonic() - start
        return epoch

    def _finish_epoch(self, epoch: Epoch) -> None:
        job, position = self._job, self._position
        self._agree()
        row: dict[str, Any] = {
            "epoch": position.epoch + 1,
            "kept": int(position.kept_N.sum()),
            "per_class": epoch.per_class,
            "drawn": epoch.drawn,
            "seen": position.seen,
            "training_loss": self._training_loss(),
            "lr": self._optimisation.lr,
            "seconds": round(position.seconds, 3),
            "waiting_seconds": round(position.waiting_seconds, 3),
        }
        network = self._optimisation.averaged
        if job.validation is not None:
            row["validation_accuracy"] = accuracy_of(network, self._reading, job.validation)
        position.metrics.append(row)
        score = row.get("validation_accuracy", float(position.epoch))
        if score > position.best:
            position.best, position.saved_epoch = score, position.epoch + 1
            self._save_model(MODEL)
        if job.validation is not None and position.epoch + 1 == job.config.epochs:
            self._save_model(LAST)
        if self._group.leads:
            self.log.epochs(position.metrics, position.updates)
        told = ", ".join(f"{name} {value:.5g}" for name, value in row.items())
        self._progress.note(f"tune: {told}")
        position.next_epoch(epoch.drawn)

    def _training_loss(self) -> float:
        loss = self._position.loss
        if not math.isfinite(loss):
            raise DataError(
                f"epoch {self._position.epoch + 1}: the training loss is {loss}; "
                f"lower tune.lr ({self._job.config.lr})"
            )
        return loss

    def _agree(self) -> None:
        """Adds up what the processes have counted since the last time."""
        self._position.merge(self._group, self._seen.merge())

    def _save_model(self, name: str) -> None:
        if self._group.leads:
            save_tuned(
                self._job.out / name,
                self._optimisation.averaged,
                self._job.embed,
                self._reading.preprocessing,
                self._job.classes,
                self._position.epoch + 1,
            )

    def _save_state(self) -> None:
        self._agree()
        if self._position.step:
            self._training_loss()
        if self._group.leads:
            state = {
                "network": self._network.state_dict(),
                "optimisation": self._optimisation.state_dict(),
                "position": self._position.state_dict(),
                "known_losses": self._seen.known_N,
            }
            write_state(self._job.out, state)
            self._group.saved()
        # Nobody may be far ahead when the first one is killed.
        self._group.sum_(torch.zeros(1, device=self._group.device))

    def _take_up(self, state: dict[str, Any]) -> None:
        self._network.load_state_dict(state["network"])
        self._optimisation.load_state_dict(state["optimisation"])
        self._position.load_state_dict(state["position"])
        self._seen.known_N = state["known_losses"]
        at = self._position
        if self._group.leads and at.epoch < self._job.config.epochs:
            self._progress.note(f"tune: goes on after step {at.step} of epoch {at.epoch + 1}")

    def _result(self) -> StageResult:
        position = self._position
        last = position.metrics[-1]
        return StageResult(
            counts={
                "epochs": self._job.config.epochs,
                "drawn": last["drawn"],
                "per_class": last["per_class"],
            },
            facts={
                "metrics": position.metrics,
                "saved_epoch": position.saved_epoch,
                "precision": self._job.precision,
                "processes": self._group.world,
            },
            notes=position.notes,
            images=position.images,
        )


def _network(job: Job, group: Group) -> tuple[nn.Module, Any]:
    weights = load(job.head)
    network, preprocessing = load_classifier(
        job.embed, weights["weight"], weights["bias"], group.device
    )
    if group.world > 1 and job.config.batch_norm == "trained":
        from timm.layers import convert_sync_batchnorm

        network = convert_sync_batchnorm(network)
    if job.config.grad_checkpointing:
        try:
            network.set_grad_checkpointing(True)  # type: ignore[operator]
        except (AssertionError, AttributeError) as error:
            raise BackboneError(
                f"{job.embed.backbone}: timm cannot checkpoint its gradients; "
                "leave out tune.grad_checkpointing"
            ) from error
    return network, preprocessing
