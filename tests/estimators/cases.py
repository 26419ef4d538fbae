"""Every public estimator in every configuration of interest: the dict that all suites share."""

from torch import nn

from lightning_estimators.baselines import LearnedBaseline, LeaveOneOut, MovingAverage, NoBaseline
from lightning_estimators.estimators import (
    ARMS,
    CARMS,
    LAX,
    REBAR,
    REINFORCE,
    RELAX,
    RODEO,
    UGC,
    VIMCO,
    Concrete,
    DisARM,
    DoubleCV,
    Enumeration,
    Fini,
    GeneralizedReparameterization,
    GumbelRao,
    HardConcrete,
    MuProp,
    Pathwise,
    ReinMax,
    RelaxedREBAR,
    StochasticBackprop,
    StraightThrough,
    UnorderedSet,
)
from lightning_estimators.networks import Surrogate


def small_surrogate():
    return Surrogate(hidden=[3], activation="tanh")


def small_baseline(normalize=False):
    return LearnedBaseline(nn.Sequential(nn.LazyLinear(3), nn.Tanh(), nn.Linear(3, 1)), normalize=normalize)


def small_stein():
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))


CASES = {
    "Enumeration": Enumeration,
    "REINFORCE": REINFORCE,
    "REINFORCE/none": lambda: REINFORCE(NoBaseline()),
    "REINFORCE/none/3": lambda: REINFORCE(NoBaseline(), num_samples=3),
    "REINFORCE/moving_average/3": lambda: REINFORCE(MovingAverage(decay=0.5), num_samples=3),
    "REINFORCE/learned": lambda: REINFORCE(small_baseline()),
    "REINFORCE/learned/3": lambda: REINFORCE(small_baseline(), num_samples=3),
    "REINFORCE/learned/normalized": lambda: REINFORCE(small_baseline(normalize=True)),
    "REINFORCE/leave_one_out/2": lambda: REINFORCE(LeaveOneOut(), num_samples=2),
    "REINFORCE/leave_one_out/3": lambda: REINFORCE(LeaveOneOut(), num_samples=3),
    "DisARM": DisARM,
    "DisARM/4": lambda: DisARM(num_samples=4),
    "ARMS": ARMS,
    "ARMS/3": lambda: ARMS(num_samples=3),
    "UGC": UGC,
    "UGC/bitflip/3": lambda: UGC(threshold=0.5, num_samples=3),
    "UnorderedSet": UnorderedSet,
    "UnorderedSet/2": lambda: UnorderedSet(num_samples=2),
    "CARMS": CARMS,
    "CARMS/2": lambda: CARMS(num_samples=2),
    "MuProp": MuProp,
    "MuProp/leave_one_out/3": lambda: MuProp(LeaveOneOut(), num_samples=3),
    "VIMCO/2": lambda: VIMCO(num_samples=2),
    "VIMCO/3": lambda: VIMCO(num_samples=3),
    "Concrete": Concrete,
    "Concrete/3": lambda: Concrete(temperature=0.7, num_samples=3),
    "Concrete/learned": lambda: Concrete(learn_temperature=True),
    "Concrete/straight_through": lambda: Concrete(straight_through=True),
    "Concrete/straight_through/learned/3": lambda: Concrete(
        straight_through=True, learn_temperature=True, num_samples=3
    ),
    "StraightThrough": StraightThrough,
    "StraightThrough/3": lambda: StraightThrough(num_samples=3),
    "ReinMax": ReinMax,
    "ReinMax/3": lambda: ReinMax(temperature=1.3, num_samples=3),
    "HardConcrete": HardConcrete,
    "HardConcrete/3": lambda: HardConcrete(temperature=0.5, low=-0.2, high=1.3, num_samples=3),
    "Fini": Fini,
    "Fini/2/3": lambda: Fini(order=2, num_samples=3),
    "GumbelRao": GumbelRao,
    "GumbelRao/learned/3": lambda: GumbelRao(0.7, num_relaxations=2, learn_temperature=True, num_samples=3),
    "DoubleCV": lambda: DoubleCV(alpha=-0.3),
    "DoubleCV/fixed/3": lambda: DoubleCV(alpha=-0.5, learn_alpha=False, num_samples=3),
    "RODEO": lambda: RODEO(small_stein(), alpha=0.3, beta=-0.2),
    "REBAR": REBAR,
    "REBAR/3": lambda: REBAR(num_samples=3),
    "REBAR/fixed": lambda: REBAR(temperature=0.3, eta=0.7, learn_temperature=False, learn_eta=False),
    "REBAR/eta": lambda: REBAR(learn_temperature=False),
    "RELAX": lambda: RELAX(small_surrogate()),
    "RELAX/fixed": lambda: RELAX(small_surrogate(), temperature=0.5, learn_temperature=False),
    "RELAX/3": lambda: RELAX(small_surrogate(), num_samples=3),
    "RelaxedREBAR": lambda: RelaxedREBAR(small_surrogate()),
    "RelaxedREBAR/eta_1": lambda: RelaxedREBAR(small_surrogate(), learn_eta=False),
    "RelaxedREBAR/3": lambda: RelaxedREBAR(small_surrogate(), num_samples=3),
    "StochasticBackprop": StochasticBackprop,
    "StochasticBackprop/3": lambda: StochasticBackprop(num_samples=3),
    "StochasticBackprop/sampled": lambda: StochasticBackprop(num_changes=1),
    "StochasticBackprop/sampled/3": lambda: StochasticBackprop(num_changes=1, num_samples=3),
    "StochasticBackprop/sampled/black_box": lambda: StochasticBackprop(num_changes=1, f_gradient=False),
    "Pathwise": Pathwise,
    "Pathwise/3": lambda: Pathwise(num_samples=3),
    "LAX": lambda: LAX(small_surrogate()),
    "LAX/3": lambda: LAX(small_surrogate(), num_samples=3),
    "GeneralizedReparameterization": GeneralizedReparameterization,
    "GeneralizedReparameterization/3": lambda: GeneralizedReparameterization(num_samples=3),
}
