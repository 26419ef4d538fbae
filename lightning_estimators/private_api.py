"""Every access to a part of another library that its authors keep to themselves.

Each function has a test that fails in words when the library changes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Union, get_args

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, OneHotCategorical
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:  # estimators import this module, and they import torch only
    import lightning.pytorch as pl
    from jsonargparse import ArgumentParser

__all__ = [
    "backward_number",
    "categorical_of",
    "inside_data_parallel_forward",
    "is_given_by_probs",
    "is_saving_hooked",
    "mark_compiled_sizes",
    "one_hot_of",
    "set_logged_step",
    "standard_gamma_derivative",
    "unvalidated_one_hot_categorical",
    "version",
    "whole_numbers_first",
]


def unvalidated_one_hot_categorical(logits: Tensor) -> OneHotCategorical:
    """Return a `OneHotCategorical` whose parameters were not validated.

    Its constructor validates them whatever `validate_args` says, because the `Categorical` that it builds inside is not
    told; on a GPU that is a synchronisation at every call.

    Args:
        logits: Unnormalised log probabilities, shape `batch_shape + (categories,)`.
    """
    return one_hot_of(Categorical(logits=logits, validate_args=False))


def one_hot_of(q: Categorical, family: type[OneHotCategorical] = OneHotCategorical) -> OneHotCategorical:
    """Return the one-hot variable on an index-valued one, sharing its tensors, without validation.

    Args:
        q: The index-valued variable.
        family: The class of what is returned, whose own constructor is not called.
    """
    one_hot = family.__new__(family)
    one_hot._categorical = q
    Distribution.__init__(one_hot, q.batch_shape, q.param_shape[-1:], validate_args=False)
    return one_hot


def categorical_of(q: OneHotCategorical) -> Categorical:
    """Return the index-valued variable that a one-hot variable of torch holds."""
    return q._categorical


def is_given_by_probs(q: Distribution) -> bool:
    """Whether a Bernoulli, categorical or one-hot variable was built from probabilities, not logits."""
    inner = q._categorical if isinstance(q, OneHotCategorical) else q
    given = vars(inner).get("probs")
    return given is not None and given is getattr(inner, "_param", None)


def mark_compiled_sizes(argument: Tensor, dynamic: Sequence[int]) -> None:
    """Tell `torch.compile` which sizes of an argument vary from call to call, and to compile in all others.

    Args:
        argument: What the compiled function will be called with.
        dynamic: Axes whose sizes vary, if they are not 1.
    """
    for axis, size in enumerate(argument.shape):
        if axis in dynamic and size > 1:
            torch._dynamo.mark_dynamic(argument, axis)
        else:
            torch._dynamo.mark_static(argument, axis)


def backward_number() -> int:
    """Return the number of the backward pass that is running in this thread, -1 outside of any.

    A forward pass that runs inside one is repeated by activation checkpointing.
    """
    return torch._C._current_graph_task_id()


def is_saving_hooked() -> bool:
    """Whether hooks on saved tensors are in force, as in the first pass of activation checkpointing."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def inside_data_parallel_forward() -> bool:
    """Whether this is called by the forward pass of a `DistributedDataParallel`, which all processes run together."""
    active = DistributedDataParallel._get_active_ddp_module()  # type: ignore[no-untyped-call]  # torch's has no types
    return active is not None


def version(tensor: Tensor) -> int:
    """Return how often a tensor was changed in place; 0 always for inference tensors, which do not count."""
    return 0 if tensor.is_inference() else tensor._version


def set_logged_step(trainer: pl.Trainer, step: int) -> None:
    """Set the number by which Lightning's loggers place what is logged next.

    Args:
        trainer: In training.
        step: Optimizer steps taken.
    """
    trainer.fit_loop.epoch_loop._batches_that_stepped = step


def whole_numbers_first(parser: ArgumentParser) -> None:
    """Let options that are a number of batches or a fraction of them read 1 as a number.

    Python keeps one object for `Optional[Union[int, float]]` and `Optional[Union[float, int]]`, the one that was
    written first in the process; with the latter 1 batch becomes 1.0, all batches.

    Args:
        parser: With all its options.
    """
    for action in parser._actions:
        if set(get_args(getattr(action, "_typehint", None))) == {int, float, type(None)}:
            action._typehint = Union[int, float, None]  # type: ignore[attr-defined]  # noqa: UP007


def standard_gamma_derivative(shape: Tensor, z: Tensor) -> Tensor:
    """Return how a standard gamma variable moves with its shape while its distribution function stays: dz / da.

    It is what torch multiplies gradients by in `rsample`, which gives it for samples that it draws itself only.

    Args:
        shape: a, positive.
        z: Samples of the standard gamma distribution of that shape.
    """
    return torch._standard_gamma_grad(shape, z)
