"""Take the pictures in docs/img of a finished sweep: ``make screenshots``, or

    python docs/screenshots.py [SWEEP [KEY=VALUE ...]] [--store FOLDER]

Needs Chromium (Debian: apt-get install chromium chromium-driver). Writes docs/img/*.png, each below 150 kB.
"""

import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from rich.console import Console

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]

import browser  # noqa: E402  # of the tests
import pytest  # noqa: E402

from sweeper.cli import live, show  # noqa: E402
from sweeper.cli.options import Target  # noqa: E402

LIMIT = 150_000  # bytes
DRAWN = "return [...document.querySelectorAll('.js-plotly-plot')].filter(p => p.data.some(d => d.y.length > 1)).length"


def main(arguments: list[str]) -> None:
    store = arguments.pop(arguments.index("--store") + 1) if "--store" in arguments else "sweeper_store"
    sweep, *overrides = [one for one in arguments if one != "--store"] or ["jobs/digits.yaml"]
    common = [sweep, *overrides, "--store", store]
    sweeper = [sys.executable, "-m", "sweeper"]
    with tempfile.TemporaryDirectory() as temporary, browser.chromium() as page:
        report = Path(temporary, "report.html")
        subprocess.run([*sweeper, "report", *common, "-o", str(report)], check=True)
        page.set_window_size(1160, 1100)
        page.get(report.as_uri())
        save(page, "report")
        page.execute_script("document.querySelector('#trials').scrollIntoView()")
        save(page, "trials")

        terminal = Console(record=True, width=112, file=io.StringIO())
        terminal.print(live.screen(Target(Path(sweep), overrides, store, None, None).service().status(), None, 60))
        status = Path(temporary, "status.html")
        style = "<style>body {{ background: #1e1e1e; color: #ddd; }} pre {{ padding: 1em; font-size: 15px; }}</style>"
        status.write_text(terminal.export_html(code_format=f"<meta charset=utf-8>{style}<pre>{{code}}</pre>"))
        page.set_window_size(1100, 420)
        page.get(status.as_uri())
        save(page, "status")

        serving = subprocess.Popen([*sweeper, "ui", *common, "--port", "0"], stdout=subprocess.PIPE, text=True)
        assert serving.stdout
        try:
            page.execute_cdp_cmd(  # MLflow's assistant opens by itself at the first visit
                "Page.addScriptToEvaluateOnNewDocument",
                {"source": "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"},
            )
            page.set_window_size(1500, 1000)
            page.get(serving.stdout.readline().strip())
            end = time.monotonic() + 60
            while page.execute_script(DRAWN) < 3 and time.monotonic() < end:
                time.sleep(0.3)
            time.sleep(2)  # the last chart has no sign of being drawn
            save(page, "ui")
        finally:
            serving.terminate()
            serving.wait()


def save(page, name: str) -> None:  # type: ignore[no-untyped-def]
    """The page as it is, in as many colours as fit."""
    picture = Image.open(io.BytesIO(page.get_screenshot_as_png())).convert("RGB")
    (HERE / "img").mkdir(exist_ok=True)
    path = HERE / "img" / f"{name}.png"
    for colors in (256, 64, 32):
        picture.quantize(colors, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size < LIMIT:
            break
    print(f"{path.relative_to(HERE.parent)}: {picture.width} x {picture.height}, {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    show.console.width = 112
    try:
        main(sys.argv[1:])
    except pytest.skip.Exception as error:
        sys.exit(str(error))
