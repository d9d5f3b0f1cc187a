"""``./build.sh new-component``: a new stage in all its places, in the house's style."""

from __future__ import annotations

import keyword
import re
import subprocess
import sys
from pathlib import Path
from string import Template

import click

from medseg.project.variables import SECRETS

HERE = Path(__file__).parent


@click.command()
@click.argument("name")
@click.option("--gpu", is_flag=True, help="It computes on a GPU where there is one.")
@click.option("--shared-memory", is_flag=True, help="Its workers exchange arrays by /dev/shm.")
@click.option(
    "--secret", "secrets", multiple=True, type=click.Choice(list(SECRETS)), help="It reads this."
)
def main(name: str, gpu: bool, shared_memory: bool, secrets: tuple[str, ...]) -> None:
    """Makes the component NAME, a pipeline of it, and their test.

    NAME is that of the function, such as convert_studies.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*[a-z0-9]", name) or keyword.iskeyword(name):
        raise click.BadParameter(f"{name!r} is no name of a function, such as convert_studies.")
    places = {
        "component.py.in": Path("components") / f"{name}.py",
        "pipeline.py.in": Path("pipelines") / f"{name}.py",
        "test.py.in": Path("tests/unit/components") / f"test_{name}.py",
    }
    for path in places.values():
        if path.exists():
            raise click.BadParameter(f"{path} is there already: choose another name.")
    needs = {"gpu": gpu, "shared_memory": shared_memory, "secrets": secrets}
    words = {
        "name": name,
        "dashed": name.replace("_", "-"),
        "title": name.replace("_", " ").capitalize(),
        "needs": ", ".join(f"{key}={value!r}" for key, value in needs.items() if value),
        "secrets": repr(tuple(sorted(secrets))),
        "sorted_secrets": repr(sorted(secrets)),
        "gpu": repr(gpu),
    }
    for template, path in places.items():
        path.parent.mkdir(exist_ok=True)
        text = Template((HERE / template).read_text(encoding="utf-8"))
        path.write_text(text.substitute(words), encoding="utf-8")
        click.echo(path)
    ruff = str(Path(sys.executable).with_name("ruff"))
    subprocess.run([ruff, "format", "--quiet", *map(str, places.values())], check=True)


if __name__ == "__main__":
    main()
