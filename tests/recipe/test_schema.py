import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, raises

from toolkit.cli.choices import choices
from toolkit.recipe.file import dump_recipe, dump_values, load_recipe, read_values
from toolkit.recipe.step import StepRecipe
from toolkit.runtime.errors import PollardError
from toolkit.tasks import PRESETS

SMALLEST = "name: try\nmodel: some/model\ntask: gsm8k\n"


def recipe_of(folder: Path, text: str, *overrides: str) -> Any:
    path = folder / "r.yaml"
    path.write_text(text)
    return load_recipe(path, overrides)


def fault_of(folder: Path, text: str, *overrides: str) -> str:
    """What a user sees, without the folder's name."""
    with pytest.raises(PollardError) as caught:
        recipe_of(folder, text, *overrides)
    assert caught.value.code.startswith("recipe.")
    return str(caught.value).replace(f"{folder}/", "")


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_committed_recipe_loads(path: Path) -> None:
    assert load_recipe(path).task.name in PRESETS


# A run writes down its resolved recipe: run again, it must be the same job.
@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_resolved_recipe_reads_back_as_itself(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path, ["finetuning.trainer.learning_rate=3e-7", "evaluation.temperature=0.5", "evaluation.samples=2"])
    again = recipe_of(tmp_path, dump_recipe(recipe))
    assert again == recipe and again.model_dump_json() == recipe.model_dump_json()  # or fingerprints would tell 32 from 32.0


# The schema must not import the lists that register them.
def test_the_names_a_recipe_allows_are_the_names_that_exist() -> None:
    assert (ROOT / "toolkit" / "recipe" / "choices.py").read_text() == choices()


@pytest.mark.parametrize("module", ["toolkit", "toolkit.recipe.file", "toolkit.cli.main"])
def test_reading_a_recipe_imports_neither_torch_nor_trl(module: str) -> None:
    code = f"import sys, {module}; print({{'torch', 'transformers', 'trl', 'deepspeed'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_cross_entropy_and_seams_alone_are_allowed_and_no_seams_leave_no_trace(tmp_path: Path) -> None:
    layers, teacher = "pruning: {layers: 3}\n", "finetuning: {teacher: original, distillation: "
    settings = recipe_of(tmp_path, SMALLEST + layers + teacher + "{weight: 0, hidden: 0.1}}\n").finetuning.distillation
    assert (settings.weight, settings.hidden) == (0, 0.1)
    assert [*recipe_of(tmp_path, SMALLEST + teacher + "{hidden: 0}}\n").finetuning.distillation.model_dump()] == [
        "weight", "temperature",
    ]  # fmt: skip


def test_short_forms_and_defaults(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, SMALLEST + "pruning:\n  # keep: 4\n")  # a section without keys is its defaults
    assert (recipe.model.path, recipe.task.name) == ("some/model", "gsm8k")
    assert (recipe.pruning.keep, recipe.evaluation.split) == (0.5, "test")


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        (
            "pruning:\n  keeep: 4\n",
            "r.yaml, line 5: `pruning.keeep` is not a key of a recipe. Did you mean `keep`? "
            "Allowed here: criterion, keep, width, width_criterion, width_multiple, layers, layer_criterion, schedule, ",
        ),
        ("string: 4\n", "r.yaml, line 4: `string` is not a key of a recipe. Did you mean `pruning`? Allowed here: name, seed,"),
        ("model.str: 4\n", "r.yaml, line 4: `model.str` is not a key of a recipe."),
        ("pruning:\n  criterion: reep\n", "line 5: `pruning.criterion` cannot be 'reep'. Did you mean `reap`? Allowed: random,"),
        ("pruning:\n  tokens: answers\n", "line 5: `pruning.tokens` cannot be 'answers'. Allowed: all, prompt, completion."),
        (
            "pruning:\n  criterion: reconstruction\n  tokens: prompt\n",
            "line 4: `pruning`: reconstruction compares the block's output on all tokens: say tokens: all",
        ),
        ("seed: soon\n", "line 4: `seed`: Input should be a valid integer"),
        ("seed: -1\n", "line 4: `seed`: Input should be greater than or equal to 0 (given: -1)."),
        (
            "pruning: 4\n",
            "line 4: `pruning` takes keys (criterion, keep, width, width_criterion, ",
        ),
        ("evaluation:\n  models: [orignal]\n", "line 5: `evaluation.models.0` cannot be 'orignal'. Did you mean `original`?"),
        (
            "calibration:\n  data:\n  - gsm8k\n  - gsm9k\n",
            "line 7: `calibration.data.1.task.name` cannot be 'gsm9k'. Did you mean `gsm8k`?",
        ),
        (
            "calibration:\n  data: [{text: a.txt, exmples: 3}]\n",
            "line 5: `calibration.data.0.exmples` is not a key of a recipe. Did you mean `examples`? Allowed here: task, text,",
        ),
        (
            "calibration:\n  data: [{text: a.txt, weight: 0}]\n",
            "line 5: `calibration.data.0.weight`: Input should be greater than 0",
        ),
        ("calibration:\n  data: [{text: a.txt, task: gsm8k}]\n", "`calibration.data.0`: give either a `task` or a `text`"),
        ("calibration:\n  data: [{examples: 3}]\n", "`calibration.data.0`: give either a `task` or a `text`"),
        ("calibration:\n  data: []\n", "line 5: `calibration.data`: List should have at least 1 item"),
        (
            "calibration:\n  data: [{text: a.txt, weight: 2}, gsm8k]\n",
            "`calibration.data`: some sources have a weight and some have none: give every source one, or none",
        ),
        ("sweep:\n  off_task: gsm9k\n", "line 5: `sweep.off_task.task.name` cannot be 'gsm9k'. Did you mean `gsm8k`?"),
        ("finetuning:\n  zero: 4\n", "line 5: `finetuning.zero`: 4 is neither a ZeRO preset (0, 1, 2, 3, 3-offload) nor"),
        ("finetuning:\n  zero: true\n", "`finetuning.zero`: True is neither a ZeRO preset"),
        ("finetuning:\n  trainer: fast\n", "line 5: `finetuning.trainer`: Input should be a valid dictionary (given: 'fast')."),
        (
            "finetuning:\n  data: [{weight: 1}]\n",
            "`finetuning.data.0`: give either a `task`, a `text` (a .jsonl or .txt file), or `self_generated: true`",
        ),
        ("finetuning:\n  data: []\n", "line 5: `finetuning.data`: List should have at least 1 item"),
        (
            "finetuning:\n  data: [{self_generated: true, text: a.txt}]\n",
            "`finetuning.data.0`: self_generated answers the prompts of a `task`, and a `text` has none",
        ),
        (
            "finetuning:\n  data: [{task: gsm8k, samples: 2}]\n",
            "`finetuning.data.0`: samples and temperature belong to answers of the model's own: add `self_generated: true`",
        ),
        (
            "finetuning:\n  data: [{self_generated: true, weight: 0.5}, gsm8k]\n",
            "`finetuning.data`: some sources have a weight and some have none",
        ),
        ("finetuning:\n  data: [{self_generate: true}]\n", "Did you mean `self_generated`?"),
        ("finetuning:\n  teacher: another\n", "line 5: `finetuning.teacher` cannot be 'another'. Allowed: original."),
        (
            "finetuning:\n  distillation: {temperature: 3}\n",
            "`finetuning`: distillation says how to learn from a teacher, and there is none: add `teacher: original`",
        ),
        (
            "finetuning:\n  teacher: original\n  distillation: {temperature: 0}\n",
            "line 6: `finetuning.distillation.temperature`: Input should be greater than 0",
        ),
        (
            "finetuning:\n  teacher: original\n  distillation: {weight: 0}\n",
            "line 6: `finetuning.distillation`: weight 0 learns nothing from the teacher",
        ),
        (
            "finetuning:\n  teacher: original\n  distillation: {hidden: -0.1}\n",
            "line 6: `finetuning.distillation.hidden`: Input should be greater than or equal to 0",
        ),
        ("finetuning:\n  distillation: {hidden: 0.1}\n", "there is none: add `teacher: original`"),
        (
            "pruning: {keep: 4}\nfinetuning: {teacher: original, distillation: {hidden: 0.1}}\n",
            "hidden compares hidden states where layers are gone, and pruning.layers takes none out",
        ),
        (
            "pruning: {schedule: [{keep: 4}, {keep: 4, layers: 3}]}\n"
            "finetuning: {teacher: original, distillation: {hidden: 0.1}}\n",
            "with pruning.schedule the layers that stay are chosen later",
        ),
        (
            "pruning: {fit: {bytes: 12G}}\nfinetuning: {teacher: original, distillation: {hidden: 0.1}}\n",
            "with pruning.fit the layers that stay are chosen later",
        ),
        ("calibration:\n  examples: 0\n", "line 5: `calibration.examples`: Input should be greater than or equal to 1"),
        ("5: 7\n", "line 4: `5`: Keys should be strings"),
    ],
)
def test_a_fault_is_named_with_file_line_key_and_what_is_allowed(tmp_path: Path, lines: str, fault: str) -> None:
    assert fault in fault_of(tmp_path, SMALLEST + lines)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("name: try\nmodel: m\ntask: gsmk8\n", "line 3: `task.name` cannot be 'gsmk8'. Did you mean `gsm8k`? Allowed: custom,"),
        ("name: try\nmodel: m\ntask: {prompt: {question}}\n", "`task.prompt` must be text: put it in quotes (given: {'question'"),
        ("name: try\nmodel: 5\ntask: gsm8k\n", "line 2: `model` takes keys (path, revision, dtype, placement), not 5."),
        ("name: try\nmodel:\ntask: gsm8k\n", "r.yaml, line 2: `model` is missing: add it"),
        ("name: try\nmodel: {dtype: float32}\ntask: gsm8k\n", "line 2: `model.path` is missing: add it"),
        ("name: ../try\nmodel: m\ntask: gsm8k\n", "line 1: `name`: a name is a folder's: letters, digits"),
        ("name: ..\nmodel: m\ntask: gsm8k\n", "line 1: `name`: a name is a folder's"),
        ("- name\n", "r.yaml must hold keys such as `model:` and `task:`, not list."),
        ("", "r.yaml must hold keys such as `model:` and `task:`"),
        ("name: [\n", "r.yaml is not valid YAML: "),
        ("name: a\n? [a, b]\n: 3\n", "r.yaml, line 2 is not valid YAML for a recipe: a key must be text."),
    ],
)  # fmt: skip
def test_a_faulty_file_is_explained(tmp_path: Path, text: str, fault: str) -> None:
    assert fault in fault_of(tmp_path, text)


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    text = "name: try\nmodle: m\ntask: gsm8k\nseed: x\npruning:\n  criterion: best\n  keep: 0\n"
    faults = fault_of(tmp_path, text, "evaluation.split=train").splitlines()
    keys = {"`model` is missing", "`modle`", "`seed`", "`pruning.criterion`", "`pruning.keep`", "`evaluation.split`"}
    assert len(faults) == len(keys) and {key for key in keys if any(key in fault for fault in faults)} == keys


@pytest.mark.parametrize(
    ("override", "begins"),
    [
        ("finetuning={early_stopping: 2, trainer: {max_steps: 3}}", "`finetuning`: early_stopping needs"),
        ("finetuning.data=[{task: gsm8k, samples: 2}]", "`finetuning.data.0`: samples and temperature"),
    ],
)
def test_a_rule_over_a_section_names_it_and_does_not_print_all_of_it(tmp_path: Path, override: str, begins: str) -> None:
    fault = fault_of(tmp_path, SMALLEST, override)
    assert begins in fault and "given:" not in fault


@pytest.mark.parametrize("keep", ["0", "-1"])
def test_keep_as_a_number_is_at_least_one(tmp_path: Path, keep: str) -> None:
    assert f"`pruning.keep`: keep must be an integer of at least 1 or a fraction in (0, 1) (given: {keep})." in fault_of(
        tmp_path, SMALLEST, f"pruning.keep={keep}"
    )


@pytest.mark.parametrize("keep", ["1.5", "1.0", "0.0", ".nan", ".inf"])
def test_keep_as_a_fraction_lies_between_zero_and_one(tmp_path: Path, keep: str) -> None:
    assert "a fraction in (0, 1)" in fault_of(tmp_path, SMALLEST, f"pruning.keep={keep}")


@pytest.mark.parametrize("keep", ["true", "half", "'4'", "[4]", "{of: 8}"])
def test_keep_is_a_number(tmp_path: Path, keep: str) -> None:
    fault = fault_of(tmp_path, SMALLEST, f"pruning.keep={keep}")
    assert "keep must be a number of experts (4) or a fraction of them (0.5)" in fault


@pytest.mark.parametrize(("keep", "value"), [("4", 4), ("0.5", 0.5), ("1", 1), ("5e-1", 0.5)])
def test_keep_stays_a_number_or_a_fraction_as_written(tmp_path: Path, keep: str, value: float) -> None:
    found = recipe_of(tmp_path, SMALLEST, f"pruning.keep={keep}").pruning.keep
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("seed=3", "seed", 3),
        ("name=2024-01-01", "name", "2024-01-01"),
        ("model=other/model", "model.path", "other/model"),
        ("model.dtype=bfloat16", "model.path", "some/model"),  # the short form keeps its meaning
        ("model.dtype=bfloat16", "model.dtype", "bfloat16"),
        ("model.revision=12e5", "model.revision", "12e5"),
        ("task.scorer=exact", "task.name", "gsm8k"),
        ("task.prompt={question} # why?", "task.prompt", "{question} # why?"),
        ('task.prompt="{question}\\nWhy?"', "task.prompt", "{question}\nWhy?"),
        ("task.test=", "task.test", None),
        ("task.test=null", "task.test", None),
        ("evaluation.examples=null", "evaluation.examples", None),
        ("evaluation.models=[original, pruned]", "evaluation.models", ["original", "pruned"]),
        ("finetuning.zero=3-offload", "finetuning.zero", "3-offload"),
        ("finetuning.zero=mine.json", "finetuning.zero", "mine.json"),
        ("finetuning.trainer.learning_rate=1e-5", "finetuning.trainer", {"learning_rate": 1e-5}),
        ("finetuning.trainer={max_steps: 3}", "finetuning.trainer", {"max_steps": 3}),
    ],
)
def test_an_override_sets_one_key(tmp_path: Path, override: str, key: str, value: Any) -> None:
    found = recipe_of(tmp_path, SMALLEST, override)
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


def test_the_last_override_wins(tmp_path: Path) -> None:
    assert recipe_of(tmp_path, SMALLEST + "seed: 1\n", "seed=2", "seed=3").seed == 3


@pytest.mark.parametrize("override", ["pruning.keep", "=4", "pruning..keep=4", "pruning.=4"])
def test_what_is_no_override_is_refused(tmp_path: Path, override: str) -> None:
    assert f"`{override}` is not an override: write key.path=value, e.g. pruning.keep=2." in fault_of(
        tmp_path, SMALLEST, override
    )


@pytest.mark.parametrize("override", ["calibraton.examples=4", "pruning.criterion=reep", "seed.x=3", "model.dtyp=float32"])
def test_a_faulty_override_is_found_on_the_command_line(tmp_path: Path, override: str) -> None:
    assert fault_of(tmp_path, SMALLEST, override).startswith(f"command line ({override}): `")


@pytest.mark.parametrize(("written", "value"), [("1e-5", 1e-5), ("2E-5", 2e-5), ("-1e3", -1000.0), ("1.e-2", 0.01), ("12", 12)])
def test_numbers_with_an_exponent_are_numbers(tmp_path: Path, written: str, value: float) -> None:
    text = SMALLEST + f"finetuning:\n  trainer:\n    learning_rate: {written}\n"
    assert recipe_of(tmp_path, text).finetuning.trainer["learning_rate"] == value


def test_a_missing_recipe_lists_those_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "math.yaml").write_text(SMALLEST)
    for path in (tmp_path / "maths.yaml", tmp_path):
        with raises("recipe.no-file", path, tmp_path / "math.yaml"):
            load_recipe(path)


def test_a_file_that_is_no_text_is_explained(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfename: x")
    with raises("recipe.not-yaml", tmp_path / "r.yaml", "utf-8"):
        load_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("name: a\nmodel: m\nname: b\ntask: gsm8k\n", "`name`", (3, 1)),
        (SMALLEST + "pruning: {keep: 2,\n  keep: 4}\n", "`pruning.keep`", (5, 4)),
        (
            SMALLEST + "calibration:\n  data:\n  - {text: a.txt, weight: 1}\n  - weight: 1\n    weight: 2\n",
            "data.1.weight",
            (8, 7),
        ),
    ],
)
def test_two_equal_keys_are_refused_with_both_lines(tmp_path: Path, text: str, key: str, lines: tuple[int, int]) -> None:
    with raises("recipe.duplicate-key", f"r.yaml, line {lines[0]}", key, f"line {lines[1]} "):
        recipe_of(tmp_path, text)


def test_anchors_and_merge_keys_are_read(tmp_path: Path) -> None:
    sections = "calibration: &limits {max_length: 99}\nfinetuning:\n  <<: *limits\n  method: lora\n"
    recipe = recipe_of(tmp_path, SMALLEST + sections)
    assert (recipe.calibration.max_length, recipe.finetuning.max_length, recipe.finetuning.method) == (99, 99, "lora")
    assert "line 5: `finetuning.keep` is not a key" in fault_of(tmp_path, SMALLEST + sections.replace("max_length", "keep"))


def test_an_alias_of_what_it_lies_in_ends_with_a_message(tmp_path: Path) -> None:
    with raises("recipe.invalid", "r.yaml, line 4: `pruning.keep`"):
        recipe_of(tmp_path, SMALLEST + "pruning: &all {keep: [*all]}\n")


# Recipes of runs made by earlier versions, which wrote YAML 1.1; and what people mean by a word or digits.
@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("no", "no"), ("on", "on"), ("y", "y"), ("true", True), ("~", None), ("1.0e-05", 1e-5), ("1e-5", 1e-5), ("1_000", 1000),
        ("08", "08"), ("0o17", "0o17"), ("_1", "_1"), ("1:30", "1:30"), ("'1:30'", "1:30"), (".5", 0.5), ("-.inf", float("-inf")),
        ("0x1f", 31), ("2e5", 200_000.0), ("'a\n\n  b'", "a\nb"), ('"a\\tb"', "a\tb"),
    ],
)  # fmt: skip
def test_a_plain_value_means_what_it_says(written: str, value: Any) -> None:
    found = read_values(f"key: {written}\n")["key"]
    assert found == value and type(found) is type(value)
    assert read_values(dump_values({"key": found})) == {"key": value}


def test_a_word_that_older_yaml_took_for_a_truth_value_stays_a_word(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, SMALLEST + "finetuning:\n  trainer: {eval_strategy: no}\n")
    assert recipe.finetuning.trainer == {"eval_strategy": "no"}
    assert recipe_of(tmp_path, dump_recipe(recipe)) == recipe


@pytest.mark.parametrize("text", ["a: [", "a: @b", "a: 1\na: 2", "a: !!python/object:os.x 1", "d: 2024-13-45", "- \0"])
def test_text_that_is_not_yaml_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        read_values(text)


def test_data_has_short_forms_and_names_itself(tmp_path: Path) -> None:
    data = "calibration:\n  data: [gsm8k, {task: gsm8k, examples: 3}, {text: a.txt}]\nsweep: {off_task: playground/logic}\n"
    recipe = recipe_of(tmp_path, SMALLEST + data)
    assert [(source.name, source.examples) for source in recipe.calibration.data] == [
        ("gsm8k", None),
        ("gsm8k", 3),
        ("a.txt", None),
    ]
    assert recipe.sweep.off_task.task.name == "playground/logic"
    assert recipe_of(tmp_path, SMALLEST, "sweep.off_task.text=b.txt").sweep.off_task.name == "b.txt"
    assert recipe_of(tmp_path, dump_recipe(recipe)) == recipe


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("evaluation: {batch_size: 0}", "`evaluation.batch_size`: a number of questions of at least 1, or auto (given: 0)."),
        ("evaluation: {batch_size: many}", "a number of questions of at least 1, or auto (given: 'many')."),
        ("evaluation: {samples: 5}", "5 samples at temperature 0 would all be the same: say temperature: 0.7"),
        ("evaluation: {temperature: 1, backend: continuous}", "continuous batching answers greedily here"),
        (
            "evaluation: {backend: server, models: [original, pruned], servers: {original: http://a/v1}}",
            "no server is named for pruned: say servers: {pruned: http://localhost:8000/v1}",
        ),
        ("evaluation: {servers: {original: http://a/v1}}", "backend is transformers: say backend: server"),
        ("evaluation: {servers: {originl: http://a/v1}}", "Did you mean `original`? Allowed here: original, pruned,"),
        (
            "control: true\nevaluation: {backend: server, models: [original], servers: {original: http://a/v1}}",
            "no server is named for the control: say evaluation.servers.control",
        ),
        ("pruning: {schedule: [6, 4, 2], keep: 4}", "keep 4 is not where the schedule [6, 4, 2] ends: leave keep out"),
        ("pruning: {schedule: [4, 6]}", "step 2 of the schedule has keep 6, after 4: what is cut does not come back"),
        ("pruning: {schedule: [4, 0]}", "keep must be an integer of at least 1"),
        ("pruning: {width_criterion: taylor}", "width_criterion belongs to width, and width is not set"),
        ("pruning: {keep: 4, width_multiple: 64}", "width_multiple belongs to width, and width is not set"),
        ("pruning: {layer_criterion: top}", "layer_criterion belongs to layers, and layers is not set"),
        ("pruning: {layers: [0, 2], layer_criterion: top}", "there is nothing for layer_criterion to choose"),
        ("pruning: {width: 100, width_multiple: 64}", "width 100 is no multiple of width_multiple 64"),
        (
            "pruning: {schedule: [{keep: 4}, {width: 0.5}]}",
            "step 2 of the schedule leaves out keep, so that all experts would be",
        ),
        ("pruning: {schedule: [{keep: 4, width: 8}, 4]}", "step 2 of the schedule leaves out width"),
        ("pruning: {schedule: [{layers: 3}, {layers: 3}]}", "step 2 of the schedule keeps what step 1 does"),
        ("pruning: {schedule: [4, {keep: 6, width: 0.5}]}", "step 2 of the schedule has keep 6, after 4"),
        (
            "pruning: {schedule: [6, {keep: 4, width: 0.5}], width: 8}",
            "width 8 is not where the schedule [6, {'keep': 4, 'width'",
        ),
        ("pruning: {schedule: [{}, 4]}", "`pruning.schedule.0`: a step of a schedule says what stays"),
        ("pruning: {schedule: [0.5, 4]}", "`pruning.schedule.0`: a step of a schedule is a number of experts (4), or keys"),
        ("pruning: {schedule: [{kep: 6}, 4]}", "Did you mean `keep`? Allowed here: keep, width, layers."),
        ("finetuning: {early_stopping: 3}", "early_stopping needs something to stop by: say select_by: dev_loss"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(tmp_path: Path, lines: str, said: str) -> None:
    with raises("recipe.invalid", said):
        recipe_of(tmp_path, f"{SMALLEST}{lines}\n")


def test_a_schedule_says_what_is_kept_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("name: x\nmodel: m\ntask: gsm8k\npruning: {schedule: [6, 4, 2]}\n")
    assert load_recipe(path).pruning.keep == 2
    assert load_recipe(path, ["pruning.keep=2"]).pruning.model_dump()["schedule"] == [6, 4, 2]
    assert load_recipe(path, ["pruning.schedule=null", "pruning.keep=4"]).pruning.keep == 4


# A fraction that is a half of the experts must not join in where something else is cut.
@pytest.mark.parametrize(
    ("pruning", "keep"),
    [
        ("{}", 0.5), ("{width: null}", 0.5), ("{width: 0.5}", None), ("{layers: [0, 2]}", None), ("{layers: 3, keep: 4}", 4),
        ("{keep: null}", None),
    ],
)  # fmt: skip
def test_all_experts_stay_where_something_else_is_cut_and_keep_is_not_set(
    tmp_path: Path, pruning: str, keep: float | None
) -> None:
    recipe = recipe_of(tmp_path, f"{SMALLEST}pruning: {pruning}\n")
    assert recipe.pruning.keep == keep
    assert recipe_of(tmp_path, dump_recipe(recipe)) == recipe


@pytest.mark.parametrize("key", ["width", "layers"])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "0.0", "true", "half", "'4'", "{of: 8}"])
def test_width_and_layers_are_numbers_or_fractions(tmp_path: Path, key: str, value: str) -> None:
    assert f"`pruning.{key}`: {key} must be a" in fault_of(tmp_path, SMALLEST, f"pruning.{key}={value}")


@pytest.mark.parametrize("layers", ["[]", "[1, 0]", "[0, 0]", "[-1]", "[0, one]", "[0.5]", "[true]"])
def test_layers_as_a_list_are_ascending_numbers(tmp_path: Path, layers: str) -> None:
    assert "names those that stay, counted from 0, ascending" in fault_of(tmp_path, SMALLEST, f"pruning.layers={layers}")


def test_steps_of_a_schedule_are_numbers_of_experts_or_keys(tmp_path: Path) -> None:
    text = SMALLEST + "pruning: {schedule: [6, {keep: 4, width: 8}, {keep: 4, width: 8, layers: 0.75}]}\n"
    pruning = recipe_of(tmp_path, text).pruning
    assert (pruning.keep, pruning.width, pruning.layers) == (4, 8, 0.75)
    assert [step.name for step in pruning.steps] == ["6", "4-width8", "4-width8-layers0.75"]
    assert pruning.steps[1] == StepRecipe(keep=4, width=8) and pruning.steps[0].model_dump() == 6
    assert recipe_of(tmp_path, dump_recipe(recipe_of(tmp_path, text))).pruning == pruning


def test_a_recipe_of_experts_alone_writes_no_keys_of_other_cuts(tmp_path: Path) -> None:
    plain, narrow = (recipe_of(tmp_path, f"{SMALLEST}pruning: {keys}\n") for keys in ("{keep: 4}", "{width: 0.5}"))
    assert not {"width", "width_criterion", "layers", "layer_criterion"} & plain.pruning.model_dump().keys()
    assert narrow.pruning.model_dump()["width_criterion"] == "energy" and "layers" not in narrow.pruning.model_dump()


def test_adapters_are_described_only_where_a_method_makes_some(tmp_path: Path) -> None:
    lora = SMALLEST + "finetuning: {method: qlora, lora: {rank: 8, router: true}}\n"
    assert recipe_of(tmp_path, lora).finetuning.lora.model_dump() == {"rank": 8, "alpha": 32, "router": True}
    assert "method full makes none: say method: lora, or qlora" in fault_of(tmp_path, lora.replace("method: qlora, ", ""))


def test_a_method_that_does_not_exist_is_named(tmp_path: Path) -> None:
    assert "finetuning.method" in fault_of(tmp_path, SMALLEST, "finetuning.method=dora")
