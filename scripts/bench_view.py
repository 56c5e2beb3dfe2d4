"""How long `flowattn view` takes: from the command to its address, from there to the
first picture in a browser, and from a click on a cell to its trajectory.

    python scripts/bench_view.py STORE [--browser /usr/bin/chromium] [--clicks 10]

Prints JSON, seconds. STORE is a sweep over two axes, such as

    flowattn sweep focus --reduced --vary start_mu=-2:2:300 --vary start_nu=-3:3:300 \
--t1 1e4 --out basin.zarr
"""

import argparse
import json
import random
import subprocess
import sys
import time
from typing import Any

# Whether all that the server sent is drawn.
_IDLE = "() => window.Bokeh?.documents.length > 0 && Bokeh.documents[0].is_idle"
# The numbers of points of the lines that are shown.
_POINTS = """() => [...Bokeh.documents[0]._all_models.values()]
  .filter((model) => model.type == "ColumnDataSource")
  .map((model) => model.data)
  .filter((data) => "entry" in data)
  .map((data) => [...data.time].reduce((n, line) => n + (line.length ?? 1), 0))"""


def measured(store: str, executable: str, clicks: int) -> dict[str, Any]:
    """The times of one server and one page, in seconds."""
    command = [sys.executable, "-m", "flowattn", "view", store, "--no-browser"]
    begin = time.perf_counter()
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        started = time.perf_counter() - begin
        return {"start": started, **_of_page(address, executable, clicks)}
    finally:
        server.terminate()
        server.wait()


def _of_page(address: str, executable: str, clicks: int) -> dict[str, Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        begin = time.perf_counter()
        page.goto(address)
        page.wait_for_function(_IDLE)
        first = time.perf_counter() - begin
        box = page.locator(".bk-Figure").first.bounding_box()
        assert box is not None
        generator, times = random.Random(0), []
        for number in range(clicks + 1):
            across, up = generator.uniform(0.15, 0.8), generator.uniform(0.15, 0.75)
            place = box["x"] + across * box["width"], box["y"] + up * box["height"]
            line = page.locator(f"div:has(> .cell.{'AB'[number % 2]})")
            before = line.inner_text() if number > 1 else "none"
            begin = time.perf_counter()
            page.mouse.click(*place)
            new = line.filter(has_text="Solved again", has_not_text=before)
            new.wait_for(timeout=120_000)
            page.wait_for_function(_IDLE)
            times.append(time.perf_counter() - begin)
            assert max(page.evaluate(_POINTS)) > 100
        browser.close()
    return {
        "first page": first,
        # It may wait for the compiler.
        "first click": times[0],
        "clicks": times[1:],
        "slowest click": max(times[1:]),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("--browser", default="/usr/bin/chromium")
    parser.add_argument("--clicks", type=int, default=10)
    given = parser.parse_args()
    print(json.dumps(measured(given.store, given.browser, given.clicks), indent=1))
