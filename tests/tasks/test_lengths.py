from toolkit.tasks.token_checks import context_fit


def test_what_is_too_long_itself_is_not_counted_again_for_its_answer() -> None:
    assert context_fit([5, 8, 10, 11, 30], 10) == (5, 2, 0)
    assert context_fit([5, 8, 10, 11, 30], 10, new_tokens=2) == (5, 2, 1)
    assert context_fit([5, 8, 10, 11, 30], 10, new_tokens=100) == (5, 2, 3)
    assert context_fit([], 10, new_tokens=2) == (0, 0, 0)
