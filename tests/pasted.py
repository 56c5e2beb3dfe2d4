"""A program that runs blocks of code, each as if pasted into a new interpreter.

Each line of its input is the code of a block and the folder to run it in; each line of
its output what the block printed, and how it failed, if it did. One interpreter for all
saves imports; names and JAX's settings are those of a new one each time.
"""

import contextlib
import io
import json
import os
import sys
import traceback
import types

import jax

# Before the settings are noted: packages may add to them.
import flowattn  # noqa: F401


def run(code: str, folder: str, settings: dict) -> tuple[str, str]:
    """What a block prints in a folder, and the traceback if it fails."""
    os.chdir(folder)
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    printed, failed = io.StringIO(), ""
    with contextlib.redirect_stdout(printed):
        try:
            exec(code, vars(main))
        except BaseException:
            failed = traceback.format_exc()
    for name, module in [*sys.modules.items()]:
        if (getattr(module, "__file__", None) or "").startswith(folder):
            del sys.modules[name]
    for name, value in settings.items():
        if jax.config.values[name] is not value:
            jax.config.update(name, value)
    return printed.getvalue(), failed


if __name__ == "__main__":
    settings = dict(jax.config.values)
    sys.path[0] = ""  # the folder that a block runs in
    for line in sys.stdin:
        code, folder = json.loads(line)
        print(json.dumps(run(code, folder, settings)), flush=True)
