"""What estimators need of a `torch.distributions.Distribution`: its parameters, a copy with other ones, and samples.

All distributions of torch work, and most classes of your own without any change. `rebuild` says what such a class must
fulfil, and how to register it otherwise.
"""

from lightning_estimators.distributions.delta import Delta
from lightning_estimators.distributions.discrete import (
    as_one_hot,
    exact_logits,
    of_index,
    probabilities,
)
from lightning_estimators.distributions.parameters import (
    base_distribution,
    check_no_hidden_parameters,
    distribution_parameters,
    rebuild,
)
from lightning_estimators.distributions.path import path_through
from lightning_estimators.distributions.sampling import (
    can_be_coupled,
    check_can_be_coupled,
    draw,
    has_small_concentration,
    log_gamma_sample,
    reparameterized_sample,
    sample,
    standard_gamma,
)
from lightning_estimators.distributions.supports import check_fixed_support, check_reparameterized

__all__ = [
    "Delta",
    "as_one_hot",
    "base_distribution",
    "can_be_coupled",
    "check_can_be_coupled",
    "check_fixed_support",
    "check_no_hidden_parameters",
    "check_reparameterized",
    "distribution_parameters",
    "draw",
    "exact_logits",
    "has_small_concentration",
    "log_gamma_sample",
    "of_index",
    "path_through",
    "probabilities",
    "rebuild",
    "reparameterized_sample",
    "sample",
    "standard_gamma",
]
