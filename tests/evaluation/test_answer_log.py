"""What a killed evaluation leaves, and who goes on from it."""

from pathlib import Path

from toolkit.evaluation import Answer, AnswerLog
from toolkit.evaluation.answers import Request

FIRST, SECOND = Answer("… #### 72\n", 41, True), Answer("\ud83d runs on", 512, False)  # half of an emoji, as a cut one reads


def request(index: int, sample: int = 0) -> Request:
    return Request(index, sample, [1, 2, 3], ())


def written(folder: Path) -> AnswerLog:
    log = AnswerLog(folder, "model")
    assert log.resume("asked") == {}
    log.append(request(7), FIRST)
    log.append(request(2, 1), SECOND)
    return log


def test_what_was_appended_is_found_again(tmp_path: Path) -> None:
    written(tmp_path / "log")
    assert AnswerLog(tmp_path / "log", "model").resume("asked") == {(7, 0): FIRST, (2, 1): SECOND}


def test_a_half_written_line_is_dropped_and_written_anew(tmp_path: Path) -> None:
    written(tmp_path)
    path = tmp_path / "0.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    log = AnswerLog(tmp_path, "model")
    assert log.resume("asked") == {(7, 0): FIRST}
    log.append(request(2, 1), SECOND)
    assert AnswerLog(tmp_path, "model").resume("asked") == {(7, 0): FIRST, (2, 1): SECOND}


def test_a_kill_at_any_byte_leaves_what_was_whole(tmp_path: Path) -> None:
    written(tmp_path / "log")
    content = (tmp_path / "log" / "0.jsonl").read_bytes()
    ends = [position + 1 for position, byte in enumerate(content) if byte == ord("\n")]
    for length in range(len(content) + 1):
        (tmp_path / "log" / "0.jsonl").write_bytes(content[:length])
        found = AnswerLog(tmp_path / "log", "model").resume("asked")
        assert len(found) == max(0, sum(end <= length for end in ends) - 1)


def test_every_ranks_file_is_read_however_many_there_are_now(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "0.jsonl").rename(tmp_path / "5.jsonl")
    assert len(AnswerLog(tmp_path, "model").resume("asked")) == 2


def test_answers_of_other_settings_or_another_model_are_never_used(tmp_path: Path) -> None:
    written(tmp_path)
    assert AnswerLog(tmp_path, "model").resume("asked otherwise") == {}
    written(tmp_path)
    assert AnswerLog(tmp_path, "another model").resume("asked") == {}
    assert not list(tmp_path.iterdir())
