"""Systems: one file a paper."""

from .base import AbstractSystem as AbstractSystem
from .base import Problem as Problem
from .topic_words import TopicWords as TopicWords

SYSTEMS: dict[str, type[AbstractSystem]] = {TopicWords.name: TopicWords}
