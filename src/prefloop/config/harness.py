"""Ability: the language model evaluation harness."""

from __future__ import annotations

from pydantic import Field

from prefloop.config.base import Section

# The Open LLM Leaderboard's first version: shots and metric of the tasks that papers on alignment report.
LEADERBOARD: dict[str, tuple[int, str]] = {
    "arc_challenge": (25, "acc_norm"),
    "hellaswag": (10, "acc_norm"),
    "mmlu": (5, "acc"),
    "truthfulqa_mc2": (0, "acc"),
}


class HarnessSection(Section):
    """Multiple choice and other tasks of lm-eval (extra `harness`), base against aligned."""

    tasks: list[str] = Field(
        list(LEADERBOARD),
        min_length=1,
        description="Names of lm-eval's tasks or groups. These four have the Open LLM Leaderboard's shots and "
        "metrics: arc_challenge 25 acc_norm, hellaswag 10 acc_norm, mmlu 5 acc, truthfulqa_mc2 0 acc.",
    )
    folder: str | None = Field(
        None,
        description="Folder of task files (YAML) to look in; with it nothing else is looked in, and no hub needed.",
    )
    shots: int | None = Field(
        None, ge=0, description="Examples before each question; without it the leaderboard's, else the task's own."
    )
    limit: int | None = Field(None, gt=0, description="Use the first N documents of each task.")
    chat: bool = Field(False, description="Put questions through the chat template; the leaderboard does not.")
