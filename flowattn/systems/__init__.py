"""Systems: one paper's setting each."""

from .base import AbstractSystem as AbstractSystem
from .base import AnyRun as AnyRun
from .base import Defaults as Defaults
from .base import Part as Part
from .base import Settings as Settings
from .base import Survey as Survey
from .base import default_panels as default_panels
from .base import final_values as final_values
from .copying.system import Copying as Copying
from .focus.system import Focus as Focus
from .keyword import Keyword as Keyword
from .ktiw.system import KTIW as KTIW
from .topic_words.system import TopicWords as TopicWords

SYSTEMS: dict[str, type[AbstractSystem]] = {
    system.name: system for system in (TopicWords, Focus, Keyword, Copying, KTIW)
}
