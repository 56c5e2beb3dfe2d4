"""Scalars: functions of small arrays as programs of single numbers.

Read the files in the order graph, folding, algebra, moves, arrays, windows, interpret,
program.
"""

from .graph import Unfit as Unfit
from .program import Program as Program
from .program import program as program
