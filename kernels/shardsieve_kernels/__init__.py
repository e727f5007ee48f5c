"""Numeric kernels of shardsieve, each in a plain reference form and in fast forms.

An op lives in its own folder and is imported from there, for example
``from shardsieve_kernels.class_gmm import class_gmm``: op and folder share a name, so an export
here would hide the folder.
"""

from shardsieve_kernels._backend import (
    Backend,
    BackendUnavailable,
    resolve_backend,
    why_unavailable,
)

__all__ = ["Backend", "BackendUnavailable", "resolve_backend", "why_unavailable"]
