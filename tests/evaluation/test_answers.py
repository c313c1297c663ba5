"""What is judged is the answer alone, whoever writes it: not the template's frame, not reasoning, nothing behind a stop text."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_templates import SHAPES, tokenizer_of
from serving import serving

from toolkit.evaluation import Answer, AnswerLog, Decoding, Questions, Scores, evaluate_with
from toolkit.evaluation.answers import Request, answer_of, read_answer
from toolkit.evaluation.generation import StopInAnswer
from toolkit.evaluation.server import ServerWriter
from toolkit.recipe.data import TaskRecipe
from toolkit.recipe.evaluation import ServersRecipe
from toolkit.tasks import Task, chat_format

THINKING = "<think>\nTwo words?\n\nOr one.\n</think>\n\nbilling"


@pytest.fixture
def task(tmp_path: Path) -> Task:
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps({"q": f"q{i}", "a": "billing"}) + "\n" for i in range(4)))
    return Task(TaskRecipe(test=str(path), prompt="{q}", completion="{a}", scorer="exact"))


def test_what_was_written_is_kept_beside_the_answer() -> None:
    form = chat_format(tokenizer_of(SHAPES["Qwen3"]))
    assert answer_of(THINKING, 20, True, (), form) == Answer("billing", 20, True, THINKING)
    assert answer_of("billing", 2, True, (), form) == Answer("billing", 2, True)


def test_a_stop_text_ends_an_answer_and_nothing_before_it() -> None:
    form = chat_format(tokenizer_of(SHAPES["Qwen3"]))
    assert answer_of(f"{THINKING}\n\nQ: more", 20, False, ("\n\n",), form).text == "billing"
    assert answer_of(f"{THINKING}\n\nQ: more", 20, False, ("\n\n",), form).ended
    assert not answer_of(THINKING, 20, False, ("\n\n",), form).ended


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(
    ("shape", "written", "stopped"),
    [
        ("Qwen3", "<think>\n\n", False),
        ("Qwen3", "<think>\n\n</think>\n\n", False),
        ("Qwen3", "<think>\n\n</think>\n\nbilling\n\n", True),
        ("Qwen3, thinking only", "So.\n\n", False),
        ("DeepSeek-R1", "So.\n</think>\n\nbilling\n\n", True),
        ("harmony", "<|channel|>analysis<|message|>So.\n\n", False),
        ("harmony", "<|channel|>final<|message|>billing\n\n", True),
        ("ChatML", "billing\n\n", True),
    ],
)
def test_generation_goes_on_where_a_stop_text_is_not_the_answers(shape: str, written: str, stopped: bool, special: bool) -> None:
    tokenizer = tokenizer_of(SHAPES[shape], special)
    stop = StopInAnswer(tokenizer, ["\n\n"], [int(tokenizer.eos_token_id)], chat_format(tokenizer))
    rows = torch.tensor([tokenizer(written, add_special_tokens=False)["input_ids"]])
    assert stop(rows).tolist() == [stopped]


def test_end_tokens_are_no_text() -> None:
    tokenizer = tokenizer_of(SHAPES["ChatML"])
    ids, end = tokenizer("billing", add_special_tokens=False)["input_ids"], int(tokenizer.eos_token_id)
    assert read_answer(tokenizer, [*ids, end, end], [end], (), 99) == Answer("billing", len(ids) + 2, True)


def served(tokenizer: Any, task: Task, text: str, prompt: str, seen: list[Any], **decoding: Any) -> Scores:
    """What becomes of an evaluation whose server always writes `text`."""

    def reply(path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        if path.endswith("/models"):
            return 200, json.dumps({"data": [{"id": "m", "object": "model"}]}).encode()
        seen.append(body)
        choice = {"index": 0, "finish_reason": "stop", "text": text, "message": {"role": "assistant", "content": text}}
        return 200, json.dumps({"id": "1", "object": "x", "choices": [choice]}).encode()

    with serving(reply) as url:
        servers = ServersRecipe.model_validate({"original": url, "prompt": prompt})
        assert servers.original
        how = Decoding(64, **decoding)
        return evaluate_with(ServerWriter(servers.original, servers, tokenizer, how), tokenizer, Questions.of(task, "test"), how)


@pytest.mark.parametrize("prompt", ["tokens", "text", "chat"])
@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ("Qwen3", THINKING),
        ("harmony", "<|channel|>analysis<|message|>So.<|end|><|start|>assistant<|channel|>final<|message|>billing"),
        ("ChatML", "billing<|im_end|>\n"),
    ],
)
def test_a_servers_answers_are_read_in_the_same_way(task: Task, shape: str, text: str, prompt: str) -> None:
    seen: list[Any] = []
    scores = served(tokenizer_of(SHAPES[shape]), task, text, prompt, seen, stop=("\n\n",))
    assert scores.score == 1.0 and scores.items[0].written == text
    # The server would stop in the reasoning; and it must leave in what says where the answer begins
    assert all("stop" not in body for body in seen)
    assert [body.get("skip_special_tokens") for body in seen] == [False if shape == "harmony" else None] * 4


def test_a_server_that_renders_the_chat_itself_has_closed_the_block_that_the_prompt_opens(task: Task) -> None:
    tokenizer = tokenizer_of(SHAPES["DeepSeek-R1"])
    assert served(tokenizer, task, "billing", "chat", []).score == 1.0
    assert served(tokenizer, task, "So.</think>billing", "chat", []).score == 1.0, "one that leaves the block in"
    assert served(tokenizer, task, "billing", "text", []).score == 0.0
    assert served(tokenizer, task, "So.\n</think>\n\nbilling", "text", []).score == 1.0


# Of special tokens a server gives back none unless asked, and what is reasoning could not be seen.
def test_a_server_leaves_tags_of_reasoning_in() -> None:
    tokenizer = tokenizer_of(SHAPES["Mistral"])
    assert not any(token in chat_format(tokenizer).marks for token in chat_format(tokenizer).special)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]"]}, replace_extra_special_tokens=False)
    tokenizer.chat_template += " "
    assert any(token in chat_format(tokenizer).marks for token in chat_format(tokenizer).special)
    assert chat_format(tokenizer).answer_in("[THINK]So.[/THINK]billing") == "billing"


# A reasoner that is cut off before its answer scores 0 like one that is wrong: the report must be able to tell.
def test_reasoning_that_was_cut_off_is_counted(task: Task, tmp_path: Path) -> None:
    scores = served(tokenizer_of(SHAPES["Qwen3"]), task, "<think>\nIt could be billing", "text", [])
    scores.save(tmp_path, "original")
    found = json.loads((tmp_path / "original.json").read_text())
    assert (found["correct"], found["empty"], found["unfinished_reasoning"]) == (0, 4, 4)


def test_a_chat_is_sent_whole(tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    chat = [
        {"role": "user", "content": "Weather?"}, {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "3"}, {"role": "assistant", "content": "Cold."},
    ]  # fmt: skip
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"chat": chat, "tools": tools}) + "\n")
    task, seen = Task(TaskRecipe(test=str(tmp_path / "chats.jsonl"), messages="chat")), []
    assert served(tokenizer_of(SHAPES["tools"]), task, "Cold.", "chat", seen).score == 1.0
    assert seen[0]["tools"] == tools and seen[0]["messages"][2] == chat[2]
    assert json.loads(seen[0]["messages"][1]["tool_calls"][0]["function"]["arguments"]) == {"city": "Oslo"}


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
