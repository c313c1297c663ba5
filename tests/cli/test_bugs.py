from pathlib import Path

import pytest

from toolkit.cli import exit_status
from toolkit.cli.exit_status import Bug, tracebacks_in
from toolkit.runtime.errors import PollardError


@pytest.fixture(autouse=True)
def _loud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exit_status, "quiet_libraries", lambda: None)


def break_down() -> None:
    raise KeyError("what nobody foresaw")


def test_a_bug_is_one_screen_that_says_where_the_traceback_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        with tracebacks_in(tmp_path):
            break_down()

    assert exit_status.exit_status_of(work) == 3
    out, err = capsys.readouterr()
    assert out.startswith("error KeyError: 'what nobody foresaw'\nThis is a bug: ")
    assert str(tmp_path / "traceback.txt") in out and "--debug" in out
    assert "Traceback" not in out + err
    assert "in break_down" in (tmp_path / "traceback.txt").read_text()


def test_without_a_run_directory_the_traceback_is_in_a_temporary_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status.exit_status_of(break_down) == 3
    written = next(line for line in capsys.readouterr().out.splitlines() if line.endswith("/traceback.txt"))
    assert "in break_down" in Path(written.strip()).read_text()


def test_a_folder_that_is_no_runs_gets_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "traceback.txt").write_text("of my own program")
    with pytest.raises(Bug), tracebacks_in(tmp_path):
        break_down()
    assert (tmp_path / "traceback.txt").read_text() == "of my own program"


@pytest.mark.parametrize(("error", "status"), [(PollardError("write it right"), 1), (ValueError("oh"), 3)])
def test_debug_shows_the_traceback_as_well(error: Exception, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise error

    assert exit_status.exit_status_of(fail, debug=True) == status
    out, err = capsys.readouterr()
    assert "Traceback" in err and "in fail" in err and str(error) in out


def test_what_the_user_can_mend_is_no_bug(tmp_path: Path) -> None:
    with pytest.raises(PollardError), tracebacks_in(tmp_path):
        raise PollardError("write it right")
    with pytest.raises(Bug), tracebacks_in(), tracebacks_in(tmp_path):  # told once, by the inner one
        break_down()
    assert (tmp_path / "traceback.txt").exists()


def test_ctrl_c_is_no_traceback_and_exit_status_130(capsys: pytest.CaptureFixture[str]) -> None:
    def stopped() -> None:
        raise KeyboardInterrupt

    assert exit_status.exit_status_of(stopped) == 130
    out, err = capsys.readouterr()
    assert out == "\nstopped by Ctrl-C\n" and err == ""
