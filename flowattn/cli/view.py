"""The command that shows a sweep as a local page."""

import dataclasses
import importlib.util
import logging
from typing import Annotated

import tyro

from ..disk.description import config_of
from ..disk.paths import path_of, require_folder
from ..errors import InputError
from ..sweeps import Again, opened_dataset
from .console import pairs, set_up

_NEEDED = ("panel", "bokeh")


@dataclasses.dataclass(frozen=True)
class View:
    """Explore a sweep on a local page: choose axes, click cells, compare them.

    The page is served to this machine alone, at an address with a random token, until
    Ctrl-C. A click solves the cell again and draws its observables over time; the last
    two clicked are compared.

    Example: flowattn view basin.zarr --x start_mu --y start_nu --color alpha
    """

    store: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STORE")]
    """The zarr store of a sweep."""
    x: str | None = None
    """Horizontal axis at first; None: the first."""
    y: str | None = None
    """Vertical axis at first, or array to draw as a curve; None: the second axis, if
    there is one."""
    color: str | None = None
    """Array to colour by at first; None: the loss."""
    where: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """AXIS=VALUE (the nearest), for axes that are not drawn at first; default: the
    first value.
    """
    port: int = 0
    """Port of the page; 0: any that is free."""
    browser: bool = True
    """Open the page in the browser."""
    data: str | None = None
    """Folder of the named corpora; None: the environment's FLOWATTN_DATA."""

    def __call__(self) -> int:
        if not all(map(importlib.util.find_spec, _NEEDED)):
            raise InputError(
                "flowattn view needs Panel and Bokeh: pip install 'flowattn[view]'"
            )
        store = self.store
        if "://" not in store:
            store = str(path_of("the store", store))
        if self.data is not None:
            require_folder("--data", self.data)
        where = pairs("where", self.where, "AXIS=VALUE")
        dataset = opened_dataset(store)
        config = config_of(dataset.attrs)
        set_up(config.get("dtype"))
        # Requests for anything but the page are refused without a word.
        logging.getLogger("tornado.access").setLevel(logging.ERROR)
        from ..explore import Stored, serve  # only now: Panel may not be there

        stored = Stored(dataset)
        view = stored.view(self.x, self.y, self.color, where)
        serve(
            stored,
            view,
            lambda: Again(config, self.data),
            self.port,
            lambda address: print(address, flush=True),
            self.browser,
        )
        return 0
