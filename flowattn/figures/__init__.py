"""Figures: what the papers show, and what they could not, each from one command."""

from .base import Figure as Figure
from .base import Runs as Runs
from .base import missing as missing
from .copying import FIGURES as _COPYING
from .corpora import FIGURES as _CORPORA
from .focus import FIGURES as _FOCUS
from .focus_images import FIGURES as _FOCUS_IMAGES
from .keyword import FIGURES as _KEYWORD
from .ktiw import FIGURES as _KTIW
from .topic_words import FIGURES as _TOPIC_WORDS

_ALL = (_TOPIC_WORDS, _CORPORA, _FOCUS, _FOCUS_IMAGES, _KEYWORD, _COPYING, _KTIW)

FIGURES: dict[str, Figure] = {
    figure.name: figure for figures in _ALL for figure in figures
}
