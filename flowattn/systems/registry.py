"""Registry: the available systems and studies, none of which is imported before it is
used.

To add one to this package takes a line here. Others come from installed packages, with
entry points in the group `flowattn.systems`, or are named as `module:Class`.
"""

import importlib
import importlib.metadata
import inspect
import re
from typing import Any, NamedTuple

from ..errors import InputError, unknown


class Line(NamedTuple):
    """Where a system is defined, `module:Class`; its paper; whether it is a study."""

    place: str
    citation: str
    study: bool = False


_LU = "Lu, Mao & Nayak, On the Dynamics of Training Attention Models, ICLR 2021"
_VASHISHT = (
    "Vashisht & Ramaswamy, On the Learning Dynamics of Attention Networks, ECAI 2023"
)
_SNELL = (
    "Snell, Zhong, Klein & Steinhardt, Approximating How Single Head Attention "
    "Learns, arXiv 2103.07601, 2021"
)

_ZHANG = (
    "Zhang, Singh, Latham & Saxe, Training Dynamics of In-Context Learning in Linear "
    "Attention, ICML 2025"
)
_SAKAMOTO = (
    "Sakamoto & Sato, Benign Overfitting in Token Selection of Attention Mechanism, "
    "ICML 2025"
)

_PEZESHKI = (
    "Pezeshki, Kaba, Bengio, Courville, Precup & Lajoie, Gradient Starvation: A "
    "Learning Proclivity in Neural Networks, NeurIPS 2021"
)

_CUI = (
    "Cui, Behrens, Krzakala & Zdeborová, A Phase Transition between Positional and "
    "Semantic Learning in a Solvable Model of Dot-Product Attention, NeurIPS 2024"
)

# By their names on the command line; the modules are in this folder.
REGISTRY: dict[str, Line] = {
    "topic-words": Line("topic_words.system:TopicWords", _LU),
    "focus": Line("focus.system:Focus", _VASHISHT),
    "focus-images": Line("focus.images:FocusImages", _VASHISHT),
    "keyword": Line("keyword.system:Keyword", _SNELL),
    "copying": Line("copying.system:Copying", _SNELL),
    "copying-starts": Line("copying.starts:CopyingStarts", _SNELL, study=True),
    "copying-models": Line("copying.models:CopyingModels", _SNELL, study=True),
    "linear-icl": Line("linear_icl.system:LinearICL", _ZHANG),
    "gradient-starvation": Line(
        "gradient_starvation.system:GradientStarvation", _PEZESHKI
    ),
    "positional-semantic": Line("positional_semantic.system:PositionalSemantic", _CUI),
    "token-selection": Line("token_selection.system:TokenSelection", _SAKAMOTO),
    "ktiw": Line("ktiw.system:KTIW", _SNELL, study=True),
}

_GROUP = "flowattn.systems"
# A class of any module.
_PLACE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def known() -> dict[str, Line]:
    """Everything that can be run by name: this package's systems, and those of others,
    which cannot reuse their names.
    """
    found = dict(REGISTRY)
    for point in importlib.metadata.entry_points(group=_GROUP):
        source = "" if point.dist is None else f" of {point.dist.name}"
        found.setdefault(point.name, Line(point.value, f"{point.value}{source}"))
    return found


def is_place(name: str) -> bool:
    """Whether a name is of the form `module:Class`.

    >>> is_place("mymodule:MySystem"), is_place("keyword"), is_place("0:1")
    (True, False, False)
    """
    return _PLACE.fullmatch(name) is not None


def load(name: str) -> Any:
    """The class of a system or study.

    Args:
        name: as on the command line, for instance "topic-words"; or "module:Class" of
            any module that can be imported, which importing then executes.

    Returns:
        The class, a subclass of `AbstractSystem` or `AbstractStudy`.

    Raises:
        InputError: for an unknown name, a module that cannot be imported, and a class
            that is not a system.

    >>> load("keyword").__name__
    'Keyword'
    """
    if name in REGISTRY:
        module, _, kind = REGISTRY[name].place.partition(":")
        return getattr(importlib.import_module(f"{__package__}.{module}"), kind)
    if is_place(name):
        return _foreign(name, name)
    others = known()
    if name not in others:
        raise unknown("system", name, others)
    return _foreign(name, others[name].place)


def _foreign(name: str, place: str) -> Any:
    """A class of a module outside this package."""
    from .base import AbstractStudy, AbstractSystem

    kinds = (AbstractSystem, AbstractStudy)
    module_name, _, attribute = place.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise InputError(f"{name}: {module_name} needs {error.name}") from error
        raise InputError(f"{name}: there is no module {error.name!r}") from None
    except (Exception, SystemExit) as error:  # a module may end its process
        what = f"{type(error).__name__}: {error}".replace("\n", " ")
        raise InputError(f"{name}: {module_name} cannot be imported, {what}") from error
    found = getattr(module, attribute, None)
    if not (inspect.isclass(found) and issubclass(found, kinds)):
        if found is None:
            own = [
                k
                for k, v in vars(module).items()
                if inspect.isclass(v) and issubclass(v, kinds) and v not in kinds
            ]
            raise unknown(f"class of {module_name}", attribute, own or ["none"])
        raise InputError(
            f"{name} is not a system: it must be a subclass of "
            "fa.systems.AbstractSystem or fa.systems.AbstractStudy"
        )
    for lacking in (*sorted(found.__abstractmethods__), "name", "citation"):
        if lacking in found.__abstractmethods__ or not hasattr(found, lacking):
            raise InputError(f"{name} is not yet a system: it has no {lacking!r}")
    return found
