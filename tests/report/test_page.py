"""Law: the page is report.json, readable; it stands alone, and nothing in it can break out of its place."""

import html
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made_up_run import ROLES, evaluate_role, make_cuts, make_large, make_run
from test_sweep_table import SHAPES, row

from toolkit.pipeline.run_facts import read_run_facts
from toolkit.pipeline.stages.report import write_alternatives
from toolkit.pipeline.write_report import write_report
from toolkit.recipe.file import load_recipe
from toolkit.recipe.roles import Role
from toolkit.report import render, tabulate
from toolkit.report.facts import ChangedAnswer, ChangedAnswers, RunFacts, look_up
from toolkit.report.measurements import Fidelity, HarnessRow, HarnessScore
from toolkit.report.measures import FORMATS, MEASURES
from toolkit.report.telling import table_measures
from toolkit.runtime import formatting as formats

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Balanced(HTMLParser):
    """Fails on a tag that is not closed, or closed in the wrong place."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing here"


def drawings(page: str) -> list[ElementTree.Element]:
    """The outermost <svg> elements, parsed as XML."""
    found, depth, start = [], 0, 0
    for tag in re.finditer(r"<(/?)svg\b", page):
        start = tag.start() if depth == 0 else start
        depth += -1 if tag[1] else 1
        if depth == 0:
            found.append(ElementTree.fromstring(page[start : page.index(">", tag.start()) + 1]))
    return found


class Facts(HTMLParser):
    """Every number that says where in report.json it stands: path, format, text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[list[str]] = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        facts = dict(attrs)
        if "data-fact" in facts:
            self.found.append([str(facts["data-fact"]), str(facts["data-format"]), ""])
            self.inside = True

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.found[-1][2] += data

    def handle_endtag(self, tag: str) -> None:
        self.inside = False


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def value_at(report: RunFacts, path: str) -> Any:
    return look_up(report, [int(key) if key.isdigit() else key for key in path.split("/")])


def test_numbers_on_the_page_are_those_of_report_json(tmp_path: Path) -> None:
    run = make_run(tmp_path, roles=(*ROLES, "control"), control=True)
    write_alternatives(run)
    write_report(run.path)
    report = RunFacts.model_validate_json((run.path / "report.json").read_text())
    page = (run.path / "report.html").read_text()
    assert page == render(report)  # nothing but report.json went into it
    found = Facts(page).found
    for path, how, text in found:
        assert plain(text) == FORMATS[how](value_at(report, path)), path
    there, shown = {path for path, _, _ in found}, table_measures(list(report.evaluated.values())).shown
    for role in (*ROLES, "control"):
        for measure in MEASURES:
            if measure.value_in(report.models[role]) is None or measure not in shown:
                continue  # of a model that skips experts only; zero for all; or noise
            assert "/".join(["models", role, measure.field] if measure.field else ["models", role]) in there
    assert {f"pairs/{i}/{key}" for i in range(6) for key in ("both", "neither", "difference", "interval/0", "p")} <= there
    assert {"changed/lost/count", "criteria/mean/frequency"} <= there
    for block in report.blocks:
        assert {f"blocks/{block}/kept_share", f"criteria/agreement/frequency/{block}"} <= there
    words = html.unescape(plain(page)).replace("→", "->")
    words = re.sub(r"<[^>]+>", "", words)
    for sentence in (report.headline, report.summary, *report.comparisons, *report.warnings):
        assert sentence in words


def test_what_was_measured_beside_the_scores_is_report_jsons_too(tmp_path: Path) -> None:
    fidelity = Fidelity(kl=0.2, kl_error=None, acceptance=0.9, acceptance_error=0.01, tokens=1234)
    harness = HarnessRow(task="arc", metric="acc", n=None, models={Role.PRUNED: HarnessScore(value=0.5, error=0.01)})
    measured = {"fidelity": {Role.PRUNED: fidelity}, "harness": [harness]}
    report = read_run_facts(make_run(tmp_path).path).model_copy(update=measured)
    found = {path: (how, text) for path, how, text in Facts(render(report)).found}
    assert plain(found["fidelity/pruned"][1]) == FORMATS[found["fidelity/pruned"][0]](report.fidelity["pruned"])
    assert found["harness/0/models/pruned"] == ("measured", "0.5000 ± 0.0100") and found["harness/0/n"] == ("count", "–")


def test_every_measure_has_one_row() -> None:
    fields = [measure.field for measure in MEASURES]
    assert len(fields) == len(set(fields))


def test_dots_and_whiskers_stand_where_their_numbers_stand_on_the_axis(tmp_path: Path) -> None:
    report = read_run_facts(make_run(tmp_path).path)
    page = render(report)
    chart = next(svg for svg in drawings(page) if "bars" in (svg.get("class") or ""))
    ticks = [
        (float(text.get("x").rstrip("%")), float(text.text.strip(" %")))
        for text in chart.iter("text")
        if (text.get("x") or "-").endswith("%") and text.get("class") == "quiet"
    ]  # type: ignore[union-attr]
    (x_0, value_0), (x_1, value_1) = ticks[0], ticks[-1]

    def value(x: str | None) -> float:
        return (value_0 + (float(str(x).rstrip("%")) - x_0) / (x_1 - x_0) * (value_1 - value_0)) / 100

    rows = {row.get("class"): row for row in chart.iter("g")}
    for role in ROLES:
        found, whisker, dot = report.models[role], rows[role].find("line"), rows[role].find("circle")
        drawn = [value(dot.get("cx")), value(whisker.get("x1")), value(whisker.get("x2"))]  # type: ignore[union-attr]
        assert drawn == pytest.approx([found.score, *found.interval], abs=1e-3)


@pytest.mark.parametrize("until", ["nothing", "calibrate", "select", "prune", "recover", "evaluate"])
def test_the_page_is_well_formed_however_far_the_run_got(tmp_path: Path, until: str) -> None:
    page = render(read_run_facts(tmp_path if until == "nothing" else make_run(tmp_path, until=until).path))
    Balanced(page)
    drawings(page)
    assert ("No model has been evaluated" in page) == (until != "evaluate")


def test_a_run_without_recovery_says_so(tmp_path: Path) -> None:
    page = render(read_run_facts(make_run(tmp_path, roles=("original", "pruned")).path))
    assert page.count("not evaluated</td>") == 1  # once in its column; its other rows are dashes
    assert "Not fine-tuned." in page


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    page = render(read_run_facts(make_run(tmp_path).path))
    attributes = Balanced(page).attributes
    assert not {"src", "xlink:href", "onload", "onclick"} & {name for name, _ in attributes}
    assert all(str(value).startswith(("data:image/png;base64,", "#")) for name, value in attributes if name == "href")
    for reference in ("https://", "@import", "url(", "<link", "<iframe", "fetch(", "import("):
        assert reference not in page
    assert page.replace("http://www.w3.org/2000/svg", "").count("http://") == 0


def test_a_page_of_128_experts_in_48_blocks_is_small_enough_to_send(tmp_path: Path) -> None:
    run = make_run(tmp_path, roles=(*ROLES, "control"), control=True)
    make_large(run)
    write_alternatives(run)
    write_report(run.path)
    assert (run.path / "report.html").stat().st_size < 300_000


def test_other_peoples_text_stays_text(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    evil = "<script>alert(1)</script>&\"'<b>"
    text = json.dumps(read_run_facts(run.path).as_json()).replace("path/of/model", json.dumps(evil)[1:-1])
    report = RunFacts.model_validate_json(text)
    example = ChangedAnswer.model_construct(**dict.fromkeys(ChangedAnswer.model_fields, evil))
    changed = dict.fromkeys(("lost", "won"), ChangedAnswers(count=1, examples=[example]))
    others = {
        "name": evil, "task": evil, "headline": evil, "summary": evil, "comparisons": [evil, evil], "warnings": [evil],
        "changed": report.changed.model_copy(update=changed), "versions": {evil: evil},
        "blocks": {f"{evil}.{name}.{evil}": block for name, block in report.blocks.items()},
    }  # fmt: skip
    page = render(report.model_copy(update=others))
    assert page.count("<script") == 2 and "alert(1)</script" not in page and "<b>" not in page
    Balanced(page)
    drawings(page)


def test_the_recipe_and_the_command_to_repeat_it_are_there(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    page = render(read_run_facts(run.path))
    shown = html.unescape(re.search(r'<pre class="recipe">(.*?)</pre>', page, re.DOTALL)[1])  # type: ignore[index]
    written = tmp_path / "shown.yaml"
    written.write_text(shown)
    assert "null" not in shown and load_recipe(written) == load_recipe(run.recipe)
    assert f"./launch.sh --ranks 2 {run.recipe} --fresh" in page


def test_random_is_called_a_control(tmp_path: Path) -> None:
    page = render(read_run_facts(make_run(tmp_path, pruning={"keep": 2, "criterion": "random"}).path))
    assert "Experts drawn at random (seed 7)" in page


def test_memory_is_shown_of_gpus_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert "Peak memory" not in render(read_run_facts(run.path))
    for role in ROLES:
        evaluate_role(run, role, device="NVIDIA H100")
    assert "Peak memory" in render(read_run_facts(run.path))


def test_contents_lead_to_every_section_and_nowhere_else(tmp_path: Path) -> None:
    run = make_run(tmp_path, roles=(*ROLES, "control"), control=True)
    make_cuts(run)
    page = render(read_run_facts(run.path))
    ids = [value for name, value in Balanced(page).attributes if name == "id"]
    targets = re.findall(r'href="#([^"]+)"', page)
    assert len(ids) == len(set(ids)) and set(targets) <= set(ids)
    contents = re.search(r'<nav class="contents".*?</nav>', page, re.DOTALL)[0]  # type: ignore[index]
    sections = re.findall(r'<h2 id="([^"]+)"', page.partition("<main>")[2])
    assert re.findall(r'href="#([^"]+)"', contents) == sections and len(sections) > 6


def test_warnings_are_announced_at_the_top(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    report = read_run_facts(run.path)
    top = render(report).partition("<main>")[0]
    assert report.warnings and f'<a href="#warnings">{len(report.warnings)} warning' in top
    assert 'href="#warnings"' not in render(report.model_copy(update={"warnings": ()}))


def test_who_made_it_when_and_on_what_stands_at_the_top(tmp_path: Path) -> None:
    report = read_run_facts(make_run(tmp_path).path)
    assert report.making is not None and report.making.finished and report.making.hardware
    top = render(report).partition("<main>")[0]
    told = re.sub(r"\s+", " ", re.sub("<[^>]+>", "", html.unescape(top)))
    assert all(
        word in told for word in (report.making.finished[:10], f"Pollard {report.making.version}", *report.making.hardware)
    )


def test_a_sweep_is_a_curve_a_recommendation_and_every_cell(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert "Sweep" not in render(read_run_facts(run.path))
    run.sweep.mkdir()
    table = tabulate([row("original", 4, 95, off=90), row("a<b", 2, 50, off=9), row("random", 2, 3, 1, off=0)])
    (run.sweep / "table.json").write_text(json.dumps(table.as_json()))
    assert read_run_facts(run.path).sweep is None  # the entry is what says that it is whole
    run.finish("sweep", "sweep", 1.0, seed=7, ranks=1)
    page = render(read_run_facts(run.path))
    Balanced(page)
    drawing = next(d for d in drawings(page) if "Accuracy over" in d.attrib.get("aria-label", ""))
    assert sum(part.tag == "polyline" for part in drawing.iter()) == 2
    assert sum(part.tag == "circle" for part in drawing.iter()) == 2
    assert "a&lt;b" in page and "a<b" not in page
    cells = {path: text for path, _, text in Facts(page).found if path.startswith("sweep/")}
    assert plain(cells["sweep/rows/1/task/score"]) == formats.percent(0.5) and "No criterion holds" in page
    assert {f"sweep/rows/{i}/{of}" for i in range(3) for of in ("keep", "task", "task/loss", "off_task/score")} <= cells.keys()


def test_cuts_of_width_and_layers_are_drawn_from_report_json(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    make_cuts(run)
    report = write_report(run.path)
    page = (run.path / "report.html").read_text()
    assert page == render(RunFacts.model_validate_json((run.path / "report.json").read_text()))
    Balanced(page)
    drawings(page)
    found = Facts(page).found
    assert all(plain(text) == FORMATS[how](value_at(report, path)) for path, how, text in found)
    there = {path for path, _, _ in found}
    assert {f"cuts/sizes/{kind}/parameters" for kind in ("original", "layers", "experts", "width")} <= there
    assert {"cuts/width/keep", "cuts/width/criteria/mean/energy"} <= there
    assert {"cuts/layers/removed/0/loss", "cuts/layers/dev_answers/after"} <= there
    words = re.sub(r"<[^>]+>", "", html.unescape(plain(page)))
    assert "Channels chosen by energy." in words and "Layers chosen by dev_loss." in words
    assert all(f"<title>layer {layer}: " in page for layer in range(3))


def test_without_such_cuts_nothing_is_said_of_them(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    page = render(write_report(run.path))
    assert "width-map" not in page.split("<script")[0] and "Size after each cut" not in page and 'id="layers"' not in page
    assert "cuts" not in json.loads((run.path / "report.json").read_text())


def test_a_page_of_narrowed_large_models_is_small_enough_to_send(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    make_large(run, width=64)
    write_alternatives(run)
    assert len(write_report(run.path).cuts.width.blocks) == 48
    assert (run.path / "report.html").stat().st_size < 400_000


def test_a_sweep_of_shapes_is_drawn_over_the_parameters(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.sweep.mkdir()
    (run.sweep / "table.json").write_text(json.dumps(tabulate(SHAPES).as_json()))
    run.finish("sweep", "sweep", 1.0, seed=7, ranks=1)
    page = render(read_run_facts(run.path))
    Balanced(page)
    assert "Sweep: accuracy over size" in page and "parameters, of the original" in html.unescape(page)
    there = {path for path, _, _ in Facts(page).found}
    assert {"sweep/rows/2/width", "sweep/rows/2/active_parameters", "sweep/rows/0/parameters"} <= there
