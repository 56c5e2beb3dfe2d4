"""Models: Equinox modules; a filter over them selects what is trained."""

from .attention import AttentionClassifier as AttentionClassifier
from .classifiers import AbstractClassifier as AbstractClassifier
from .classifiers import AffineClassifier as AffineClassifier
from .classifiers import LinearClassifier as LinearClassifier
from .classifiers import TwoLayerClassifier as TwoLayerClassifier
from .focus import AbstractFocusModel as AbstractFocusModel
from .focus import ImageFocus as ImageFocus
from .focus import LinearFocus as LinearFocus
from .focus import Network as Network
from .heads import FactorisedScores as FactorisedScores
from .heads import FreeScores as FreeScores
from .heads import PositionalHeads as PositionalHeads
from .linear import AbstractLinearHeads as AbstractLinearHeads
from .linear import MergedHeads as MergedHeads
from .linear import SeparateHeads as SeparateHeads
from .selection import SelectionHead as SelectionHead
from .sequence import SequenceModel as SequenceModel
from .tied import TiedHead as TiedHead
