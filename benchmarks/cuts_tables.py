"""The tables of docs/cuts-study.md, from finished cells; what is not finished is named there."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cuts_cells import Answers, Masked, SweepCell, SweepResult, TrainedCell, TrainedResult
from cuts_layers import Choice, LayerCell, LayerResult, Measured
from study import markdown, paired_points, put_between

from toolkit.runtime.formatting import MISSING, count, interval, loss, percent
from toolkit.selection import LAYER_CRITERIA, WIDTH_CRITERIA

BEGIN, END = "<!-- tables: written by benchmarks/cuts_study.py -->", "<!-- end of tables -->"
DEFAULT = "energy"
Row = Mapping[int, Answers]  # by seed
Swept = Sequence[tuple[SweepCell, SweepResult]]
Trained = Sequence[tuple[TrainedCell, TrainedResult]]


def write_tables(
    document: Path, study: str, swept: Sequence[SweepCell], trained: Sequence[TrainedCell], layers: Sequence[LayerCell]
) -> list[str]:
    """Replaces what stands between the marks in `document`; returns the missing cells."""
    masked = [(cell, swept_models) for cell in swept if (swept_models := cell.result(study))]
    fine_tuned = [(cell, result) for cell in trained if (result := cell.result(study))]
    chosen = [(cell, sets) for cell in layers if (sets := cell.result(study))]
    done = {cell.name for cell, _ in masked} | {cell.name for cell, _ in fine_tuned} | {cell.name for cell, _ in chosen}
    names = [*(cell.name for cell in swept), *(cell.name for cell in trained), *(cell.name for cell in layers)]
    missing = [name for name in names if name not in done]
    parts = []
    for subject in dict.fromkeys(cell.subject for cell, _ in masked):
        of_subject = [(cell, models) for cell, models in masked if cell.subject == subject]
        parts += WidthTables(
            subject, of_subject, [(cell, result) for cell, result in fine_tuned if cell.subject == subject]
        ).parts()
    for layer_cell, sets in chosen:
        parts += _layer_tables(layer_cell.subject, sets)
    if missing:
        parts.append(f"### Not finished\n\n{_not_finished(missing, trained)}.")
    put_between(document, BEGIN, END, parts)
    return missing


def _not_finished(missing: Sequence[str], trained: Sequence[TrainedCell]) -> str:
    """Names them; where all fine-tuned cells of a width and seed are missing, in one."""
    groups: dict[str, list[str]] = {}
    for cell in trained:
        groups.setdefault(f"fine-tuned to width {cell.width} with seed {cell.seed}", []).append(cell.name)
    absent = {group: names for group, names in groups.items() if set(names) <= set(missing)}
    others = [f"`{name}`" for name in missing if not any(name in names for names in absent.values())]
    return ", ".join([*others, *(f"everything {group}" for group in absent)])


class WidthTables:
    """Of one task: sizes, every criterion at every width before and after fine-tuning, and the default against the others."""

    def __init__(self, subject: str, swept: Swept, trained: Trained) -> None:
        self.subject, self.trained = subject, trained
        self.masked = {cell.seed: result["models"] for cell, result in swept}
        self.original = swept[0][1]["models"][0]
        self.widths = sorted({model["width"] for model in swept[0][1]["models"] if model["width"]}, reverse=True)
        self.controls = {cell.seed: result["models"]["control"] for cell, result in trained if "control" in result["models"]}

    def parts(self) -> list[str]:
        found = [f"### {self.subject}, narrower experts", self._introduction(), self._sizes()]
        told = "Narrowed, not fine-tuned. Loss: nats per completion token, mean of the seeds."
        found += [told, self._scores(self._masked, "loss", self._mean_loss)]
        if self.trained:
            told = "Narrowed and fine-tuned. Minus control: of the same seed, question by question, in points over all seeds."
            found += [told, self._scores(self._fine_tuned, "minus control", self._minus_control)]
        return [*found, *self._default_against_others()]

    def _masked(self, criterion: str, width: int) -> Mapping[int, Masked]:
        found = ((seed, model) for seed, models in self.masked.items() for model in models)
        return {seed: model for seed, model in found if (model["criterion"], model["width"]) == (criterion, width)}

    def _fine_tuned(self, criterion: str, width: int) -> Row:
        found = ((cell, result["models"]["recovered"]) for cell, result in self.trained)
        return {cell.seed: model for cell, model in found if (cell.criterion, cell.width) == (criterion, width)}

    def _introduction(self) -> str:
        told = (
            f"{self.original['n']:,} dev questions ({self.original['tokens']:,} completion tokens), 95 % Wilson intervals; the "
        )
        told += f"original: {_score(self.original)}, loss {loss(self.original['loss'])}"
        if self.controls:
            each = ", ".join(f"{_score(answers)} (seed {seed})" for seed, answers in sorted(self.controls.items()))
            told += f"; the control, which is the original, fine-tuned: {each}"
        return told + "."

    def _sizes(self) -> str:
        models = [next(iter(self._masked(DEFAULT, width).values())) for width in self.widths]
        body = [[str(model["width"] or "as it was"), *_sizes(model, self.original)] for model in (self.original, *models)]
        return markdown(["width", "parameters", "active parameters"], body)

    def _scores(self, of: Callable[[str, int], Row], last: str, value: Callable[[str, int], str]) -> str:
        """By width and criterion; `value` stands in the `last` column."""
        seeds = sorted({seed for width in self.widths for criterion in WIDTH_CRITERIA for seed in of(criterion, width)})
        body = []
        for width in self.widths:
            for criterion in WIDTH_CRITERIA:
                if row := of(criterion, width):
                    each = [_score(row[seed]) if seed in row else MISSING for seed in seeds]
                    mean = percent(statistics.mean(answers["score"] for answers in row.values()))
                    body.append([str(width), f"`{criterion}`", *each, mean, value(criterion, width)])
        return markdown(["width", "criterion", *(f"seed {seed}" for seed in seeds), "mean", last], body)

    def _mean_loss(self, criterion: str, width: int) -> str:
        return loss(statistics.mean(model["loss"] for model in self._masked(criterion, width).values()))

    def _minus_control(self, criterion: str, width: int) -> str:
        return _against(self._fine_tuned(criterion, width), self.controls)

    def _default_against_others(self) -> list[str]:
        """Paired question by question, over all seeds that both have."""
        rows = [
            [
                str(width),
                f"`{criterion}`",
                *(_against(of(DEFAULT, width), of(criterion, width)) for of in (self._masked, self._fine_tuned)),
            ]
            for width in self.widths
            for criterion in WIDTH_CRITERIA
            if criterion != DEFAULT
        ]
        told = (
            f"`{DEFAULT}` minus another criterion, in points over all seeds that both have, question by question: 95 % interval, "
            f"and p of McNemar's test. {sum(cell != MISSING for row in rows for cell in row[2:])} tests: between equals, about "
            "one in twenty falls below 0.05. The seeds share their questions, so intervals and p are too small, most where seeds "
            "answer alike."
        )
        return [told, markdown(["width", f"`{DEFAULT}` minus", "not fine-tuned", "fine-tuned"], rows)]


def _against(row: Row, other: Row) -> str:
    return paired_points([(row[seed]["right"], other[seed]["right"]) for seed in row if seed in other])


def _layer_tables(subject: str, result: LayerResult) -> list[str]:
    """Every set of layers, and the ranks of what the criteria choose."""
    total = max(map(_number, result["sets"]))
    original = result["sets"][",".join(map(str, range(total)))]
    sets = {key: found for key, found in result["sets"].items() if found is not original}
    head = ["layers kept", "parameters", "active parameters", "loss", "rank", "among all", "accuracy", "rank", "among all"]
    body = []
    for key, found in sorted(sets.items(), key=lambda item: (-_number(item[0]), item[1]["loss"])):
        by_loss, by_score = _ranks(key, sets)
        body.append([_named(key), *_sizes(found, original), loss(found["loss"]), *by_loss, _score(found), *by_score])
    told = (
        f"{original['n']:,} dev questions; all {len(sets)} sets of fewer than {total} layers, masked, not fine-tuned. The "
        f"original: loss {loss(original['loss'])} nats per completion token, accuracy {_score(original)}. Ranks count from the "
        "best, among those with as many layers and among all."
    )
    return [
        f"### {subject}, fewer layers",
        told,
        markdown(head, body),
        "What the criteria choose, and the ranks of that set. Seeds are named where they choose differently.",
        markdown(
            ["layers", "criterion", "kept", "rank by loss", "among all", "rank by accuracy", "among all"],
            [row for number in range(total - 1, 0, -1) for row in _choice_rows(result["choices"], number, sets)],
        ),
    ]


def _choice_rows(choices: Sequence[Choice], number: int, sets: Mapping[str, Measured]) -> list[list[str]]:
    """What every criterion chooses at one number of layers."""
    body = []
    for criterion in LAYER_CRITERIA:
        seeds: dict[str, list[int]] = {}
        for choice in choices:
            if choice["criterion"] == criterion and len(choice["kept"]) == number:
                seeds.setdefault(",".join(map(str, choice["kept"])), []).append(choice["seed"])
        for key, of in seeds.items():
            told = f" (seed {', '.join(map(str, of))})" if len(seeds) > 1 else ""
            by_loss, by_score = _ranks(key, sets)
            body.append([str(number), f"`{criterion}`{told}", _named(key), *by_loss, *by_score])
    return body


def _ranks(key: str, sets: Mapping[str, Measured]) -> tuple[list[str], list[str]]:
    """By loss and by accuracy, each among the sets with as many layers and among all."""
    alike = {other: found for other, found in sets.items() if _number(other) == _number(key)}
    return [_loss_rank(key, alike), _loss_rank(key, sets)], [_score_rank(key, alike), _score_rank(key, sets)]


def _loss_rank(key: str, among: Mapping[str, Measured]) -> str:
    return _rank(key, among, lambda found: found["loss"])


def _score_rank(key: str, among: Mapping[str, Measured]) -> str:
    return _rank(key, among, lambda found: -found["score"])


def _rank(key: str, among: Mapping[str, Measured], value: Callable[[Measured], float]) -> str:
    """ "2 of 6"; equals share the best of their ranks: "=2 of 6"."""
    own, values = value(among[key]), [value(found) for found in among.values()]
    return f"{'=' if values.count(own) > 1 else ''}{1 + sum(other < own for other in values)} of {len(values)}"


def _number(key: str) -> int:
    return len(key.split(","))


def _named(key: str) -> str:
    return key.replace(",", ", ")


def _score(found: Answers | Measured) -> str:
    low, high = found["interval"]
    return f"{percent(found['score'])} ({interval((low, high))})"


def _sizes(model: Masked | Measured, original: Masked | Measured) -> list[str]:
    """Parameters and active parameters: "1,938,560 (55 %)"."""
    pairs = (
        (model["parameters"], original["parameters"]),
        (model["active_parameters"], original["active_parameters"]),
    )
    return [f"{count(size)} ({percent(size / whole, 0)})" if model is not original else count(size) for size, whole in pairs]
