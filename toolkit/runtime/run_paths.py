"""Where everything of a run lies: names only, so that every room can say where it reads and writes."""

from pathlib import Path


class RunPaths:
    """The files and folders of the run `root`/`name` (docs/files.md says what each holds)."""

    def __init__(self, name: str, root: str | Path = "runs") -> None:
        self.path = Path(root) / name
        self.recipe = self.path / "recipe.yaml"
        self.manifest = self.path / "manifest.json"
        self.layers = self.path / "layers.json"
        self.layer_measurements = self.path / "layers"
        self.statistics = self.path / "calibration"
        self.plan = self.path / "plan.json"
        self.dense = self.path / "dense" / "plan.json"
        self.refit = self.path / "refit.json"
        self.fit_result = self.path / "fit.json"
        self.fit = self.path / "fit"
        self.alternatives = self.path / "alternatives.json"
        self.pruned = self.path / "pruned"
        self.refitted = self.path / "refitted"
        self.recovered = self.path / "recovered"
        self.control = self.path / "control"
        self.teacher = self.path / "teacher"
        self.answers = self.path / "answers"
        self.adapter = self.path / "adapter"
        self.control_adapter = self.path / "control_adapter"
        self.checkpoints = self.path / "checkpoints"
        self.training_log = self.path / "training_log.jsonl"
        self.control_log = self.path / "control_log.jsonl"
        self.rounds = self.path / "rounds"
        self.student = self.path / "student"
        self.evaluation = self.path / "evaluation"
        self.fidelity = self.path / "fidelity"
        self.off_task = self.path / "off_task"
        self.sweep = self.path / "sweep"
        self.drafts = self.path / "drafts"

    def student_round(self, number: int) -> "RunPaths":
        """Of one training on what the student writes: its answers, the teacher's cache of them, and, but for the last training,
        the model that it leaves."""
        return RunPaths(str(number), self.student)

    def answer_log(self, role: str) -> Path:
        """The answers of an evaluation that is at work."""
        return self.evaluation / f"{role}.answers"
