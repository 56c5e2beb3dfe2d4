"""Models: Equinox modules; what is trained is a filter over them."""

from .attention import AttentionClassifier as AttentionClassifier
from .classifiers import AbstractClassifier as AbstractClassifier
from .classifiers import LinearClassifier as LinearClassifier
from .classifiers import TwoLayerClassifier as TwoLayerClassifier
