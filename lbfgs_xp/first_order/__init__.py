"""First-order optimizers: elementwise rules, written as in their papers."""

from lbfgs_xp.first_order.adagrad import Adadelta, Adagrad, RMSProp
from lbfgs_xp.first_order.adam import (
    AdaBelief,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    RAdam,
    Yogi,
)
from lbfgs_xp.first_order.asgd import ASGD
from lbfgs_xp.first_order.base import FirstOrder
from lbfgs_xp.first_order.sgd import SGD, GradientDescent
from lbfgs_xp.first_order.sign import Lion, Rprop
from lbfgs_xp.first_order.state import OptimizerState
from lbfgs_xp.first_order.stochastic_lbfgs import StochasticLBFGS

NAMES: dict[str, type[FirstOrder]] = {
    "gradient_descent": GradientDescent,
    "sgd": SGD,
    "adagrad": Adagrad,
    "rmsprop": RMSProp,
    "adadelta": Adadelta,
    "adam": Adam,
    "adamw": AdamW,
    "adamax": Adamax,
    "nadam": NAdam,
    "radam": RAdam,
    "yogi": Yogi,
    "adabelief": AdaBelief,
    "lion": Lion,
    "rprop": Rprop,
    "asgd": ASGD,
}

__all__ = [
    "ASGD",
    "NAMES",
    "SGD",
    "AdaBelief",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "FirstOrder",
    "GradientDescent",
    "Lion",
    "NAdam",
    "OptimizerState",
    "RAdam",
    "RMSProp",
    "Rprop",
    "StochasticLBFGS",
    "Yogi",
]
