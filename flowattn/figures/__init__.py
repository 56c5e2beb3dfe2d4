"""Figures: what the papers show, and what they could not, each from one command."""

from .base import Figure as Figure
from .base import Runs as Runs
from .base import missing as missing
from .digits import FIGURES as _DIGITS
from .focus import FIGURES as _FOCUS
from .heads import FIGURES as _HEADS
from .sentiment import FIGURES as _SENTIMENT
from .topic_words import FIGURES as _TOPIC_WORDS

FIGURES: dict[str, Figure] = {
    figure.name: figure
    for figure in (*_TOPIC_WORDS, *_SENTIMENT, *_FOCUS, *_DIGITS, *_HEADS)
}
