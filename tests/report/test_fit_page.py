"""Law: page and card show the fit that report.json holds, shape by shape, and nothing of one where there was none."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fit_cases import TOO_LARGE, fit_case, measured, shape
from made_up_run import make_cuts, make_run
from test_page import Balanced, Facts, drawings, plain, value_at

from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.write_report import write_report
from toolkit.report import card, render
from toolkit.report.facts import RunFacts
from toolkit.report.fit_table import labels
from toolkit.report.measures import FORMATS
from toolkit.runtime.formatting import percent, signed_loss

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")


def make_fit_run(folder: Path, **changes: object) -> RunDirectory:
    run = make_run(folder)
    fit_case(**changes).save(run.fit_result)
    run.finish("fit/choose", "fit", 1.0, seed=7, ranks=1)
    return run


def test_the_page_is_report_json_and_names_every_shape(tmp_path: Path) -> None:
    run = make_fit_run(tmp_path)
    write_report(run.path)
    report = RunFacts.model_validate_json((run.path / "report.json").read_text())
    page = (run.path / "report.html").read_text()
    assert page == render(report) and report.fit
    Balanced(page)
    found = Facts(page).found
    assert all(plain(text) == FORMATS[how](value_at(report, path)) for path, how, text in found)
    there = {path for path, _, _ in found}
    for i, each in enumerate(report.fit.shapes):
        at = f"fit/shapes/{i}"
        assert {f"{at}/{size}" for size in ("layers", "experts", "width", "bytes", "active_parameters")} <= there
        assert (f"{at}/measured/delta" in there) == (each.measured.delta is not None)  # type: ignore[union-attr]
        assert {f"{at}/measured/score", f"{at}/measured"} <= there and (f"{at}/trial/score" in there) == (each.trial is not None)
    assert {"fit/original/bytes", "fit/original/measured/score", "fit/rank_correlation", "fit/axes/1/points/1/delta"} <= there
    assert "fit/axes/1/points/2/delta" not in there  # not finite
    text = re.sub(r"<[^>]+>", "", html.unescape(plain(page)))
    assert report.fit.sentence in text and report.fit.recommendation in text and f"2 shapes: {TOO_LARGE}" in text
    assert text.count("not finite") >= 3 and 'class="chosen"' in page and page.count('<tr class="chosen">') == 1


def test_both_drawings_have_a_title_a_description_and_a_mark_per_shape(tmp_path: Path) -> None:
    report = write_report(make_fit_run(tmp_path).path)
    assert report.fit
    named = {}
    for drawing in drawings(render(report)):
        if drawing.get("aria-labelledby", "").startswith("fit-"):
            title, text = (next(part for part in drawing if part.tag == tag) for tag in ("title", "desc"))
            assert drawing.get("aria-labelledby") == f"{title.get('id')} {text.get('id')}"
            named[str(title.text)] = drawing, str(text.text)
    sizes, described = named["Dev accuracy over size on disk"]
    assert [circle.get("class") for circle in sizes.iter("circle")].count("dot chosen") == 1
    assert sum(1 for _ in sizes.iter("circle")) == len(report.fit.shapes)
    assert sum(part.get("class") == "tried" for part in sizes.iter("rect")) == len(report.fit.tried)
    assert [part.get("class") for part in sizes.iter("line")].count("limit") == 1
    assert all(shape.text in described for shape in report.fit.shapes)
    predictions, _ = named["Measured over predicted loss, above the original’s"]
    assert sum(1 for _ in predictions.iter("circle")) == 7  # one is not finite


def test_the_card_has_a_row_per_shape_and_the_page_s_numbers(tmp_path: Path) -> None:
    report = write_report(make_fit_run(tmp_path).path)
    assert report.fit
    lines = card(report, "here").splitlines()
    for label, each in zip(labels(report.fit)[1:], report.fit.shapes, strict=True):
        [line] = [line for line in lines if line.startswith(f"| {label} | {each.layers} | {each.experts} |")]
        assert each.measured and f" {percent(each.measured.score)} |" in line
        assert (f" {signed_loss(each.measured.delta)} |" if each.measured.delta is not None else " not finite |") in line
        assert each.trial is None or f" {percent(each.trial.score)} |" in line
    heading = next(i for i, line in enumerate(lines) if line.startswith("|  | layers | experts |"))
    assert lines[heading].count("|") == lines[heading + 1].count("|") == lines[heading + 2].count("|") and not lines[heading - 1]
    assert report.fit.sentence in card(report, "here") and TOO_LARGE in card(report, "here")


UNMEASURED = fit_case().original.model_copy(update={"measured": None})
STATES: dict[str, dict[str, object]] = {
    "not chosen": {"chosen": None, "reason": ""},
    "nothing met the limits": {"chosen": None, "shapes": [], "axes": [], "seconds": {}},
    "not finite": {"chosen": 0, "shapes": [shape(4, 8, 64, measured=measured(None))], "axes": []},
    "likeness": {"chosen": 0, "shapes": [shape(4, 8, 128, measured=measured(0.5, kl=0.1))], "metric": "fidelity"},
    "not measured": {"chosen": None, "shapes": [shape(3, 8, 128), shape(3, 4, 128)], "original": UNMEASURED},
}


@pytest.mark.parametrize("state", STATES)
def test_the_page_is_well_formed_however_far_the_fit_got(tmp_path: Path, state: str) -> None:
    report = write_report(make_fit_run(tmp_path, **STATES[state]).path)
    page = render(report)
    Balanced(page)
    drawings(page)
    assert '<h2 id="fit">Fit' in page and all(
        plain(text) == FORMATS[how](value_at(report, path)) for path, how, text in Facts(page).found
    )
    assert "nan" not in re.sub(r"<[^>]+>", "", page).lower().split() and "| layers |" in card(report, "here")


def test_other_peoples_text_stays_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>&\"'<b>"
    shapes = [*fit_case().shapes, shape(4, 8, 250, refused=evil)]
    page = render(write_report(make_fit_run(tmp_path, reason=evil, shapes=shapes, dtype=evil).path))
    assert "alert(1)</script" not in page and "<b>" not in page
    Balanced(page)


def test_layers_are_said_to_be_the_fits_choice(tmp_path: Path) -> None:
    run = make_fit_run(tmp_path)
    make_cuts(run, dev_answers=None)
    run.layers.write_text(json.dumps(json.loads(run.layers.read_text()) | {"criterion": "given"}))
    report = write_report(run.path)
    page = render(report)
    assert "Layers as the fit dropped them." in page and "2 of 3 layers stay (0, 2), as the fit dropped them." in card(
        report, "here"
    )
    assert "as the recipe lists them" not in page and "layer_criterion" not in " ".join(report.warnings)


def test_without_a_fit_nothing_is_said_of_one(tmp_path: Path) -> None:
    report = write_report(make_run(tmp_path).path)
    files = [(tmp_path / "small" / name).read_text() for name in ("report.json", "README.md")]
    assert "fit" not in json.loads(files[0]) and '<h2 id="fit">' not in render(report) and "limit of" not in files[1]


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium here: apt install chromium (.ci/run does)")
def test_in_a_browser_every_shape_can_be_seen_on_a_phone_and_no_number_leaves_the_drawing(tmp_path: Path) -> None:
    run = make_fit_run(tmp_path)
    write_report(run.path)
    probe = """<script>onload = () => {
      const frame = document.querySelector('iframe').contentDocument, found = { wide: frame.documentElement.scrollWidth };
      const shown = [...frame.querySelectorAll('.fit .plot circle')].filter((dot) => dot.getBoundingClientRect().width > 6);
      const inside = [...frame.querySelectorAll('.fit .plot .number')].map((text) => text.getBoundingClientRect());
      found.dots = shown.length; found.outside = inside.filter((box) => box.left < 0 || box.right > 360).length;
      document.title = JSON.stringify(found); }</script>"""
    framed = tmp_path / "framed.html"  # headless windows are no narrower than 500
    page = run.path / "report.html"
    framed.write_text(f'<iframe src="file://{page}" style="width:360px;height:4000px;border:0"></iframe>{probe}')
    arguments = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=3000")
    command = [
        str(BROWSER),
        *arguments,
        f"--user-data-dir={tmp_path / 'profile'}",
        "--allow-file-access-from-files",
        "--dump-dom",
    ]
    done = subprocess.run([*command, f"file://{framed}"], capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title and json.loads(html.unescape(title[1])) == {"wide": 360, "dots": 15, "outside": 0}
