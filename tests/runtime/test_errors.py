from toolkit.runtime.errors import first_of


def test_of_many_faults_the_first_are_shown_and_the_others_counted() -> None:
    assert first_of(["a", "b"]) == "a\nb"
    assert first_of([str(i) for i in range(1_010)], shown=2) == "0\n1\n… and 1,008 more"
