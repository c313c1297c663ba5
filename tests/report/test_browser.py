"""Law: in a real browser the page renders, on a desk and on a phone, by day and by night; its script runs without an error, and
nothing is fetched."""

import html
import json
import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from made_up_run import BLOCKS, ROLES, make_cuts, make_large, make_run

from toolkit.pipeline.stages.report import write_alternatives
from toolkit.pipeline.write_report import write_report
from toolkit.recipe.roles import Role
from toolkit.report import render
from toolkit.report.answer import Answer
from toolkit.report.class_results import class_facts

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
QUIET = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--hide-scrollbars", "--virtual-time-budget=3000",
)  # fmt: skip
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium here: apt install chromium (.ci/run does)")
LABELS = {"train": "a.jsonl", "test": "b.jsonl", "prompt": "{text}", "completion": "{team}"}
SCRIPT = """<script>
  window.mistakes = []; addEventListener("error", (e) => mistakes.push(e.message));
</script>"""
PROBE = """<script>
  const map = document.getElementById("map"), box = map.getBoundingClientRect(), said = [];
  const point = (x, y) => {
    const at = { clientX: box.left + box.width * x, clientY: box.top + box.height * y, bubbles: true };
    map.dispatchEvent(new PointerEvent("pointermove", at));
    said.push(document.getElementById("readout").textContent);
  };
  point(0.5 / 4, 0.75); point(1.5 / 4, 0.25);
  map.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowUp" }));  // off the map: nothing moves
  map.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
  said.push(document.getElementById("readout").textContent);
  document.querySelector('input[value="prompt"]').click();
  said.push(document.getElementById("readout").textContent);
  const shown = [...map.querySelectorAll("image")].filter((i) => getComputedStyle(i).display !== "none");
  const fetched = performance.getEntriesByType("resource").map((e) => e.name).filter((name) => !name.startsWith("data:"));
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  document.title = JSON.stringify({ mistakes, fetched, said, shown: shown.map((i) => i.getAttribute("class")), wide });
</script></body>"""


def browse(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(BROWSER), *QUIET, f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("page"), roles=(*ROLES, "control"), control=True)
    write_alternatives(run)
    write_report(run.path)
    return run.path / "report.html"


def colours(file: Path) -> list[tuple[int, ...]]:
    """Every 39th pixel of a screenshot (an 8-bit PNG); filters undone row by row."""
    data, at, parts = file.read_bytes(), 8, b""
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        parts += data[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        if kind == b"IHDR":
            width, height, _, colour = struct.unpack(">IIBB", data[at + 8 : at + 18])
        at += 12 + length
    size = {2: 3, 6: 4}[colour]
    lines, last, found = zlib.decompress(parts), bytes(width * size), []
    for y in range(height):
        kind, row = lines[y * (width * size + 1)], bytearray(lines[y * (width * size + 1) + 1 : (y + 1) * (width * size + 1)])
        for i in range(len(row) if kind else 0):
            left, up, corner = (row[i - size], last[i], last[i - size]) if i >= size else (0, last[i], 0)
            guess = left + up - corner
            paeth = min((left, up, corner), key=lambda near: abs(guess - near))
            row[i] = (row[i] + (left, up, (left + up) // 2, paeth)[kind - 1]) % 256
        found += [tuple(row[x * size : x * size + 3]) for x in range(0, width, 39)]
        last = bytes(row)
    return found


def test_the_script_tells_the_numbers_without_an_error_and_nothing_is_fetched(page: Path, tmp_path: Path) -> None:
    probed = tmp_path / "probed.html"
    text = page.read_text()
    probed.write_text(text.replace("<head>", f"<head>{SCRIPT}").replace("</body>", PROBE))
    done = browse(tmp_path, "--window-size=1200,900", "--dump-dom", f"file://{probed}")
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title, done.stdout[:500]
    found = json.loads(title[1].replace("&amp;", "&").replace("&lt;", "<"))
    assert found == {
        "mistakes": [], "fetched": [], "shown": ["prompt"], "wide": 0,
        "said": [
            "Block 1, expert 0: never or hardly ever chosen, pruned", "Block 0, expert 1: 40.00 % of the block’s choices, kept",
            "Block 0, expert 2: never or hardly ever chosen, pruned", "Block 0, expert 2: never or hardly ever chosen, pruned",
        ],
    }  # fmt: skip
    assert not re.search(r"CONSOLE.*(rror|efused)", done.stderr)


@pytest.mark.parametrize("night", [False, True], ids=["day", "night"])
@pytest.mark.parametrize("width", [1200, 500], ids=["desk", "phone"])
def test_it_looks_like_a_page(page: Path, tmp_path: Path, width: int, night: bool) -> None:
    shot = tmp_path / "shot.png"
    scheme = ["--blink-settings=preferredColorScheme=0"] if night else []
    small = "--force-device-scale-factor=0.4"  # fewer pixels to look at, laid out alike
    browse(tmp_path, f"--window-size={width},1000", small, *scheme, f"--screenshot={shot}", f"file://{page}")
    found = colours(shot)
    ground = max(set(found), key=found.count)
    assert (sum(ground) < 150) == night
    assert 0.02 < sum(colour != ground for colour in found) / len(found) < 0.6
    assert len(set(found)) > 20  # not blank: text, bars and lines


def test_a_phone_need_not_scroll_sideways(page: Path, tmp_path: Path) -> None:
    framed = tmp_path / "framed.html"  # headless windows are no narrower than 500
    framed.write_text(
        f'<iframe src="file://{page}" style="width:360px;height:4000px;border:0"></iframe><script>onload = () => {{ '
        "const d = document.querySelector('iframe').contentDocument.documentElement; document.title = d.scrollWidth; }</script>"
    )
    done = browse(tmp_path, "--allow-file-access-from-files", "--dump-dom", f"file://{framed}")
    assert re.search(r"<title>(\d+)</title>", done.stdout)[1] == "360"  # type: ignore[index]


PHONE_PROBE = """<script>onload = () => {
  const page = document.querySelector("iframe").contentDocument, wide = page.documentElement.clientWidth, out = [], hidden = [];
  for (const one of page.querySelectorAll("main *, header *, nav *")) {
    const box = one.getBoundingClientRect();
    if (box.width && box.right > wide + 0.5 && !one.parentElement.closest(".scroll, svg, pre"))
      out.push(one.outerHTML.slice(0, 80));
  }
  for (const one of page.querySelectorAll("[data-fact]"))
    if (!one.closest("details:not([open])") && !one.getClientRects().length) hidden.push(one.dataset.fact);
  document.title = JSON.stringify({ sideways: page.documentElement.scrollWidth - wide, out, hidden });
}</script>"""


@pytest.mark.parametrize("width", [360, 768, 1280, 1920])
def test_on_a_screen_of_any_width_nothing_is_cut_off_and_every_number_is_there(tmp_path: Path, width: int) -> None:
    run = make_run(tmp_path, roles=(*ROLES, "control"), control=True, evaluation={"margin": 2}, task=LABELS)
    make_cuts(run)
    report = write_report(run.path)
    asked = [Answer(i, f"{i}?", f"label {i % 9}", f"label {i % 5}", i % 9 == i % 5) for i in range(90)]
    classes = class_facts({Role.ORIGINAL: asked, Role.RECOVERED: asked}, str, str.__eq__)
    (run.path / "report.html").write_text(render(report.model_copy(update={"classes": classes})))
    framed = tmp_path / "framed.html"  # headless windows are no narrower than 500
    frame = f'<iframe src="file://{run.path / "report.html"}" style="width:{width}px;height:4000px;border:0"></iframe>'
    framed.write_text(frame + PHONE_PROBE)
    done = browse(tmp_path, "--allow-file-access-from-files", "--dump-dom", f"file://{framed}")
    found = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout)[1]))  # type: ignore[index]
    assert found == {"sideways": 0, "out": [], "hidden": []}


REGIONS_PROBE = """<script>onload = () => {
  const regions = [...document.querySelector("iframe").contentDocument.querySelectorAll(".scroll")];
  const wide = regions.filter((one) => !one.closest("details:not([open])") && one.scrollWidth > one.clientWidth);
  document.title = JSON.stringify([regions.length, wide.map((one) => one.getAttribute("aria-label"))]);
}</script>"""


def test_a_phone_shows_whole_tables_of_three_models(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    write_alternatives(run)
    write_report(run.path)
    framed = tmp_path / "framed.html"
    framed.write_text(f'<iframe src="file://{run.path / "report.html"}" style="width:360px;border:0"></iframe>{REGIONS_PROBE}')
    done = browse(tmp_path, "--allow-file-access-from-files", "--dump-dom", f"file://{framed}")
    regions, wide = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout)[1]))  # type: ignore[index]
    assert regions > 5 and wide == []


def test_it_prints_and_a_large_model_too(tmp_path: Path) -> None:
    run = make_run(tmp_path, roles=(*ROLES, "control"), control=True)
    make_large(run)
    write_alternatives(run)
    write_report(run.path)
    printed = tmp_path / "page.pdf"
    browse(tmp_path, f"--print-to-pdf={printed}", "--no-pdf-header-footer", f"file://{run.path / 'report.html'}")
    assert printed.read_bytes()[:5] == b"%PDF-" and printed.stat().st_size > 20_000


WIDTH_PROBE = """<script>
  const map = document.getElementById("width-map"), box = map.getBoundingClientRect(), said = [];
  const point = (x, y) => {
    const at = { clientX: box.left + box.width * x, clientY: box.top + box.height * y, bubbles: true };
    map.dispatchEvent(new PointerEvent("pointermove", at));
    said.push(document.getElementById("width-readout").textContent);
  };
  point(2.5 / 4, 0.25); point(3.5 / 4, 0.75); point(0.5 / 4, 0.25);
  const seen = [...document.querySelectorAll("#width-map image")].every((i) => getComputedStyle(i).display !== "none");
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  document.title = JSON.stringify({ mistakes, said, seen, wide });
</script></body>"""


def test_the_map_of_channels_tells_its_numbers_too(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    make_cuts(run)
    energy = write_report(run.path).cuts.width.blocks[BLOCKS[0]].energy[0]
    probed = tmp_path / "probed.html"
    text = (run.path / "report.html").read_text()
    probed.write_text(text.replace("<head>", f"<head>{SCRIPT}").replace("</body>", WIDTH_PROBE))
    done = browse(tmp_path, "--window-size=1200,900", "--dump-dom", f"file://{probed}")
    found = json.loads(re.search(r"<title>(.*?)</title>", done.stdout)[1].replace("&amp;", "&"))  # type: ignore[index]
    assert (found["mistakes"], found["seen"], found["wide"]) == ([], True, 0)
    assert found["said"] == [
        "Block 0, expert 2: pruned", "Block 2, expert 3: no token reached it",
        f"Block 0, expert 0: its channels hold {100 * energy:.2f} % of its energy",
    ]  # fmt: skip
