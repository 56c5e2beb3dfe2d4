"""Systems: one paper's setting each."""

from .base import AbstractSystem as AbstractSystem
from .base import Defaults as Defaults
from .base import Problem as Problem
from .base import Then as Then
from .focus import Focus as Focus
from .topic_words import TopicWords as TopicWords

SYSTEMS: dict[str, type[AbstractSystem]] = {s.name: s for s in (TopicWords, Focus)}
