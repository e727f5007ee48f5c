"""The settings of `tune`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from shardsieve.config_section import Precision, Section, Share

# What changes how a result is come by, and not the result.
HOW = frozenset({"processes", "checkpoint_minutes", "checkpoint_steps", "tensorboard"})
# What `auto` stands for. TURN's is what its paper does.
_BY_RECIPE = {
    "turn": {"loss": "ce", "labels": "given", "balance": "smallest"},
    "best": {"loss": "gce", "labels": "corrected", "balance": "all"},
}


class TuneConfig(Section):
    """Full fine-tuning on the clean samples."""

    epochs: int = Field(4, ge=1)
    """Passes over the clean set."""
    batch_size: int = Field(32, ge=1)
    """Images in one step of the optimiser, those of all processes and parts together."""
    accumulate: int = Field(1, ge=1)
    """Parts in which a step's gradient is computed, one after the other: more need less memory."""
    optimiser: str = Field("adamw", min_length=1)
    """`adamw`, `sgd` or any other of timm's optimisers; fused on a GPU where timm's is torch's."""
    lr: float = Field(1e-4, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(1e-4, ge=0)
    """Weight decay; biases and norms have none."""
    layer_decay: float | None = Field(None, gt=0, le=1)
    """Each layer, as timm groups them, learns at this share of the rate of the one above it."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """How the learning rate goes on from its peak."""
    warmup_epochs: float = Field(0.0, ge=0)
    """Epochs in which the learning rate rises from zero to its peak; may be a part of one."""
    clip_norm: float | None = Field(None, gt=0)
    """Gradients whose norm over all weights is larger are scaled down to it."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Keep an exponential moving average of the weights (timm's ModelEmaV3, with its warm-up) that
    forgets at this rate a step. It is then what reselects, is validated and is saved."""
    loss: Literal["auto", "ce", "gce"] = "auto"
    """Cross entropy, or generalized cross entropy, which trusts single labels less. `auto`: `ce`
    for the recipe `turn`, `gce` for `best`: some labels it keeps are wrong all the same."""
    q: float = Field(0.7, gt=0, le=1)
    """The q of `gce`."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of every target that is spread over all classes."""
    labels: Literal["auto", "given", "corrected", "soft"] = "auto"
    """`given`: the kept samples under their labels. `corrected`: removed samples as well, under the
    label that the selection suggests, where it is sure enough. `soft`: the kept samples, with the
    selection's probabilities of the given and the suggested label as targets. Both need the recipe
    `best`; a label that people decided on stays as it is. `auto`: `corrected` for the recipe
    `best`, `given` for `turn`, which suggests nothing."""
    correct_above: float = Field(0.95, ge=0, lt=1)
    """`corrected`: the confidence that a suggested label needs."""
    balance: Literal["auto", "smallest", "all"] = "auto"
    """`smallest`: every epoch draws as many samples from each class as the smallest one has (TURN).
    `all`: every clean sample once an epoch. `auto`: `smallest` for the recipe `turn`, `all` for
    `best`."""
    reselect: Literal["epoch", "running", "never"] = "epoch"
    """`epoch`: before every epoch but the first, all samples are scored by the model as it is and
    the mixtures are fitted anew (TURN). `running`: they are fitted to the losses that training saw,
    and to those of the probe for samples that were not trained on, which costs nothing. The recipe
    `best` keeps its selection."""
    max_samples: int | None = Field(None, ge=1)
    """At most this many samples an epoch, the same number from every class, one at least."""
    crop_scale: tuple[Share, Share] = (0.35, 1.0)
    """Range of the share of the image's area that timm's random crop keeps."""
    flip: float = Field(0.5, ge=0, le=1)
    """Probability of a horizontal flip."""
    color_jitter: float = Field(0.0, ge=0)
    """How much brightness, contrast and saturation vary (timm's color_jitter)."""
    auto_augment: str | None = Field(None, min_length=1)
    """timm's name of an augmentation policy, such as `rand-m9-mstd0.5-inc1` or `augmix-m3-w3`."""
    erase: float = Field(0.0, ge=0, le=1)
    """Probability that a rectangle of an image is erased (timm's RandomErasing)."""
    mixup: float = Field(0.0, ge=0)
    """Alpha of mixup, 0 for none (timm's Mixup, one mixture a batch)."""
    cutmix: float = Field(0.0, ge=0)
    """Alpha of cutmix, 0 for none; with mixup as well, each batch gets one of them."""
    batch_norm: Literal["frozen", "trained"] = "frozen"
    """`frozen`: batch norms keep the statistics that the features were made with, so that the
    network starts as good as the probe; their scale and shift are trained all the same."""
    precision: Precision = "auto"
    """As for `embed`; weights and optimiser state stay in fp32. fp16 comes with loss scaling."""
    grad_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, a third more time."""
    compile: bool = False
    """torch.compile the network: pays on a GPU and for long runs."""
    processes: int = Field(1, ge=1)
    """Processes on this machine that share each step (torch DDP): one per GPU, or several on a CPU.
    The result is the same but for rounding. On Ray: workers of the cluster; 1 for all of them."""
    checkpoint_minutes: float = Field(10.0, gt=0)
    """An interrupted call goes on from a state that is at most this old."""
    checkpoint_steps: int | None = Field(None, ge=1)
    """Save the state every so many steps as well."""
    tensorboard: bool = False
    """Also write TensorBoard events; needs the package `tensorboard`."""
    validation: tuple[str, ...] = ()
    """Clean shards to measure accuracy on after every epoch; the best epoch is saved."""
    validation_labels: str | None = Field(None, min_length=1)
    """Where their labels stand, as for index.labels; default: where those of the others do."""

    def for_recipe(self, recipe: str) -> Self:
        """Returns these settings with every `auto` that depends on the recipe replaced."""
        chosen = _BY_RECIPE[recipe]
        return self.model_copy(
            update={name: value for name, value in chosen.items() if getattr(self, name) == "auto"}
        )

    @field_validator("crop_scale")
    @classmethod
    def _ascending(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if scale[0] > scale[1]:
            raise ValueError("the smallest share comes first")
        return scale

    @model_validator(mode="after")
    def _agree(self) -> Self:
        mixes = self.mixup > 0 or self.cutmix > 0
        if mixes and self.labels == "soft":
            raise ValueError("labels = soft does not go with mixup or cutmix; choose one of them")
        if mixes and self.reselect == "running":
            raise ValueError("reselect = running needs unmixed images: no mixup or cutmix")
        return self
