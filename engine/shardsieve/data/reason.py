"""Why a sample is where it is."""

from __future__ import annotations

from enum import IntEnum


class Reason(IntEnum):
    """One reason per row, stored as u8; the stages only ever turn KEPT into something else.

    What people decided in a review comes last and overrules the recipe. Samples fall into three
    groups that add up to the input: kept, removed (judged, and probably mislabelled, in
    the held-out shards as well, or over the quota of their class) and unreadable (never judged,
    listed one by one).
    """

    KEPT = 0
    HIGH_LOSS = 1
    LEAK = 2
    KEPT_BY_REVIEW = 7
    REMOVED_BY_REVIEW = 8
    OVER_QUOTA = 9
    NO_IMAGE = 10
    NO_LABEL = 11
    LABEL_OUTSIDE = 12
    UNDECODABLE = 13
    TRUNCATED = 14
    DAMAGED_TAR = 15
    NOT_FINITE = 16
    UNSAFE_NAME = 17

    @property
    def word(self) -> str:
        """The name that tables, manifest and report show."""
        return self.name.lower()

    @property
    def group(self) -> str:
        """`kept`, `removed` or `unreadable`."""
        if self in KEPT_REASONS:
            return "kept"
        return "removed" if self < Reason.NO_IMAGE else "unreadable"


KEPT_REASONS = (Reason.KEPT, Reason.KEPT_BY_REVIEW)
# Not by what a sample's loss is: training must not decide otherwise.
DECIDED_REASONS = (Reason.KEPT_BY_REVIEW, Reason.REMOVED_BY_REVIEW, Reason.LEAK)
REMOVED_REASONS = tuple(reason for reason in Reason if reason.group == "removed")
WORDS: dict[int, str] = {reason.value: reason.word for reason in Reason}
EXPLANATIONS: dict[Reason, str] = {
    Reason.KEPT: "probably labelled right",
    Reason.HIGH_LOSS: "p_clean is not above tau: the label is probably wrong",
    Reason.LEAK: "the same image stands in the held-out shards",
    Reason.OVER_QUOTA: "probably labelled right, but its class has as many as its quota allows",
    Reason.KEPT_BY_REVIEW: "somebody looked and kept it, perhaps under another label",
    Reason.REMOVED_BY_REVIEW: "somebody looked and left it out",
    Reason.NO_IMAGE: "no member with an image extension",
    Reason.NO_LABEL: "no label, or one that cannot be read",
    Reason.LABEL_OUTSIDE: "the label is not one of the classes",
    Reason.UNDECODABLE: "the image cannot be decoded",
    Reason.TRUNCATED: "the shard ends inside this sample",
    Reason.DAMAGED_TAR: "no valid tar header here; what follows was found again further on",
    Reason.UNSAFE_NAME: "its name leads out of the folder that the shard is unpacked in",
    Reason.NOT_FINITE: "the features are not finite numbers",
}
