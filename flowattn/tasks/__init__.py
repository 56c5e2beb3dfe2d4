"""Tasks: what generates or holds the data."""

from .sentences import Corpus as Corpus
from .sentences import Sentences as Sentences
from .topic_words import TopicWordsTask as TopicWordsTask
