"""First-order optimizers: elementwise rules, written as in their papers."""

from lbfgs_xp.first_order.adafactor import Adafactor
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
from lbfgs_xp.first_order.muon import Muon
from lbfgs_xp.first_order.schedule_free import ScheduleFreeAdamW
from lbfgs_xp.first_order.sgd import SGD, GradientDescent
from lbfgs_xp.first_order.sign import Lion, Rprop
from lbfgs_xp.first_order.soap import SOAP
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
    "schedule_free_adamw": ScheduleFreeAdamW,
    "adafactor": Adafactor,
    "muon": Muon,
    "soap": SOAP,
}

__all__ = [
    "ASGD",
    "NAMES",
    "SGD",
    "SOAP",
    "AdaBelief",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "FirstOrder",
    "GradientDescent",
    "Lion",
    "Muon",
    "NAdam",
    "OptimizerState",
    "RAdam",
    "RMSProp",
    "Rprop",
    "ScheduleFreeAdamW",
    "StochasticLBFGS",
    "Yogi",
]
