"""Tasks: what generates or holds the data."""

from .bags import Bag as Bag
from .cifar import cifar10 as cifar10
from .copying import CopyingTask as CopyingTask
from .images import ImageSet as ImageSet
from .images import digits as digits
from .keywords import KeywordTask as KeywordTask
from .mosaics import ImageMosaics as ImageMosaics
from .mosaics import ImageMosaicsTask as ImageMosaicsTask
from .mosaics import MosaicSplits as MosaicSplits
from .mosaics import OrthogonalMosaics as OrthogonalMosaics
from .mosaics import OrthogonalMosaicsTask as OrthogonalMosaicsTask
from .sentences import Corpus as Corpus
from .sentences import Sentences as Sentences
from .text import NAMED_CORPORA as NAMED_CORPORA
from .text import TextTask as TextTask
from .topic_words import TopicWordsTask as TopicWordsTask
from .words import WordTable as WordTable
