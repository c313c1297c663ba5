import sys

from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import scaling_fit
import scaling_table


# One model's section, made anew, stands for the page: the others come from the same code, and take longer.
def test_the_page_is_what_the_command_writes() -> None:
    page = (ROOT / "docs" / "scaling.md").read_text()
    assert page.startswith(scaling_table.head())
    assert scaling_table.section("mixtral-8x7b") in page
    assert all(f"## {name}\n" in page for name in scaling_table.MODELS.values())
    assert scaling_table.refit_head() + scaling_table.refit_rows("mixtral-8x7b") in page
    assert all(f"| {name} | 8 |" in page for name in scaling_table.REFIT_MODELS.values())
    machine = scaling_table.fit_machine()
    assert scaling_fit.HEAD in page and scaling_fit.SEARCH in page
    assert scaling_fit.shapes_rows("mixtral-8x7b", machine) in page and scaling_fit.search_row("mixtral-8x7b", machine) in page
    assert all(page.count(f"| {name} | ") >= len(scaling_fit.LIMITS) + 1 for name in scaling_fit.MODELS.values())
