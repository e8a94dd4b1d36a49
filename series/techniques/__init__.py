"""All techniques, each of the file that is called as it is: everything that lists them reads this."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from series.fit import Fit
from series.machine import Machine
from series.parameters import COMMON
from series.techniques.base import CALIBRATIONS as CALIBRATIONS
from series.techniques.base import Technique as Technique

_modules = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
_found: list[Technique] = [module.TECHNIQUE for module in _modules if hasattr(module, "TECHNIQUE")]
TECHNIQUES = {one.name: one for one in sorted(_found, key=lambda one: one.notebook)}
BY_NOTEBOOK = {one.notebook: one for one in TECHNIQUES.values()}
MEASURED = [one for one in TECHNIQUES.values() if one.record]  # those that leave a record
ARTICLE = [one for one in MEASURED if one.article]
PARAMETERS = COMMON | {name: rule for one in TECHNIQUES.values() for name, rule in one.parameters.items()}
# Who loads what is ready-made.
LOADS = {method: one.notebook for one in TECHNIQUES.values() for method in one.loads if not one.beside}


def offers(machine: Machine, config: Any) -> list[tuple[str, Fit]]:
    """What each technique would need for a model here, and what to say of it."""
    return [offer for one in MEASURED for offer in one.offers(machine, config)]
