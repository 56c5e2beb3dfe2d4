"""Reports: pages that stand alone in one file, of runs, sweeps and other results."""

from .page import Code as Code
from .page import Formula as Formula
from .page import Mark as Mark
from .page import Page as Page
from .page import Section as Section
from .page import Shown as Shown
from .page import Table as Table
from .page import Verdict as Verdict
from .page import written as written
from .words import scientific as scientific
from .words import share as share
