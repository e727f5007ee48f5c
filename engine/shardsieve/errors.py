"""Everything shardsieve raises on purpose.

```
ShardsieveError            exit code
├── ConfigError            2    an unknown key, a value out of range, an option that cannot work
├── DataError              3    what was given to read cannot be used
│   ├── ShardError         3    one shard: missing, not a tar, changed while it was read
│   ├── LabelError         3    the labels or the class names do not fit the samples
│   └── DiskError          3    nothing can be written: full, read-only or not allowed
├── BackboneError          3    an unknown backbone, or weights that do not fit it
├── StaleArtefact          5    a stage is asked for whose inputs are missing or out of date
├── RunLocked              5    another process works in the same run directory
└── DeviceUnavailable      4    a device was asked for by name and cannot be used
```

`shardsieve_kernels.BackendUnavailable` stands apart: the kernels know nothing of the engine.
"""

from __future__ import annotations


class ShardsieveError(Exception):
    """Base of all errors with a message for the user: what, where, and what to do."""

    exit_code = 1


class ConfigError(ShardsieveError):
    """A setting is unknown, out of range, or contradicts another."""

    exit_code = 2


class DataError(ShardsieveError):
    """The input cannot be used as it is."""

    exit_code = 3


class ShardError(DataError):
    """A shard is missing, is not a tar, or changed while it was being read."""


class LabelError(DataError):
    """Labels, label table and class names do not fit together."""


class DiskError(DataError):
    """Results cannot be written: the disk is full, read-only, or not ours to write to."""


class BackboneError(DataError):
    """The backbone is unknown, or its weights cannot be had or do not fit."""


class StaleArtefact(ShardsieveError):
    """A stage needs the result of an earlier one that is missing or made with other settings."""

    exit_code = 5


class RunLocked(ShardsieveError):
    """Another process holds the lock of the run directory."""

    exit_code = 5


class DeviceUnavailable(ShardsieveError):
    """A device was asked for by name and this machine cannot use it."""

    exit_code = 4
