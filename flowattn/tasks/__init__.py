"""Tasks: what generates or holds the data."""

from .bags import Bag as Bag
from .sentences import Corpus as Corpus
from .sentences import Sentences as Sentences
from .text import NAMED_CORPORA as NAMED_CORPORA
from .text import TextTask as TextTask
from .topic_words import TopicWordsTask as TopicWordsTask
from .words import WordTable as WordTable
