"""The table of what find_best_configuration has compared, as a page."""

from __future__ import annotations

from importlib.resources import files

from medseg.config import TaskConfig
from medseg.nnunet.choice import Choice


def candidates_page(config: TaskConfig, choice: Choice) -> str:
    """All candidates with the Dice of each structure, as an HTML page that needs nothing else.

    Args:
        config: The task's config.
        choice: What was chosen, and from what.
    """
    import jinja2  # composing pipelines imports this room, without the stages' packages

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["dice"] = lambda value: "–" if value is None else f"{value:.4f}"
    text = files("medseg.evaluation").joinpath("candidates.html.j2").read_text(encoding="utf-8")
    return environment.from_string(text).render(
        task=config.experiment_name,
        choice=choice,
        steps=[_names(config, step) for step in choice.postprocessing],
    )


def choice_measures(choice: Choice) -> dict[str, float]:
    """The choice as numbers: the Dice of each candidate, and of the chosen one post-processed."""
    values = {"_".join(("Dice", *row["configurations"])): row["dice"] for row in choice.candidates}
    values["Dice_chosen"] = choice.dice
    return {name: value for name, value in values.items() if value is not None}


def _names(config: TaskConfig, step: tuple[int, ...]) -> str:
    for name, values in config.label_set.structures.values():
        if values == step:
            return name
    return "all structures together"
