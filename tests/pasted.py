"""A program that runs blocks of code, each as if pasted into a new interpreter.

Each line of its input is the code of a block and the folder to run it in; each line of
its output what the block printed, and how it failed, if it did. One interpreter for all
saves imports; modules' names and JAX's settings are those of a new one each time.
"""

import contextlib
import io
import json
import os
import sys
import traceback
import types

import jax

# A package of the settings' own prefix may add some when it is imported.
import flowattn  # noqa: F401


def run(code: str, settings: dict) -> tuple[str, str]:
    """What a block prints, and the traceback if it fails."""
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    printed, failed = io.StringIO(), ""
    with contextlib.redirect_stdout(printed):
        try:
            exec(code, vars(main))
        except BaseException:
            failed = traceback.format_exc()
    for name, value in settings.items():
        if jax.config.values[name] is not value:
            jax.config.update(name, value)
    return printed.getvalue(), failed


if __name__ == "__main__":
    settings = dict(jax.config.values)
    sys.path[0] = ""  # the folder that a block runs in
    for line in sys.stdin:
        code, folder = json.loads(line)
        os.chdir(folder)
        print(json.dumps(run(code, settings)), flush=True)
