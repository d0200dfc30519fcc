"""The command ``python -m sb3_diffusion.report``."""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sb3_diffusion.command_line import program
from sb3_diffusion.common.saving import replacing
from sb3_diffusion.common.validation import check_choice, check_number
from sb3_diffusion.experiments.comparison import RETURNS, Comparison
from sb3_diffusion.experiments.pictures import PICTURES, draw
from sb3_diffusion.experiments.reading import Run, read, unique
from sb3_diffusion.experiments.tables import table

DESCRIPTION = """
Compare variants: a Markdown table and pictures of the interquartile mean over seeds with 95 % stratified bootstrap intervals,
of differences and the probability of improvement, of learning over steps and over hours, and a performance profile.
"""
SOURCES = """
a campaign's results.csv or its folder; or a folder under which rl-zoo3 or EvalCallback left evaluations.npz files. LABEL=PATH
names what is found there, for two runs of one algorithm
"""


def parser() -> argparse.ArgumentParser:
    """:return: the parser of the command"""
    result = argparse.ArgumentParser(prog=program("report"), description=DESCRIPTION)
    result.add_argument("sources", nargs="+", metavar="PATH", help=SOURCES)
    result.add_argument("--metric", nargs="+", metavar="COLUMN", help="columns to compare (deterministic_return)")
    result.add_argument("--baseline", metavar="VARIANT", help="the variant that the others are compared with (the first one)")
    result.add_argument("--variants", nargs="+", metavar="VARIANT", help="these variants only, in this order (all)")
    result.add_argument("--environments", nargs="+", metavar="ENV", help="these environments only, in this order (all)")
    result.add_argument("--steps", type=int, help="compare the last evaluations up to this step (each run's last one)")
    result.add_argument(
        "--score",
        nargs=3,
        action="append",
        default=[],
        metavar=("ENV", "ZERO", "ONE"),
        help="which values count as 0 and 1 in means over tasks, where none are known; repeatable (known ones alone)",
    )
    result.add_argument("--pictures", nargs="*", choices=list(PICTURES), default=list(PICTURES), help="which to draw (all)")
    result.add_argument("--out", type=Path, default=Path("report"), help="how the files' names begin (report)")
    return result


def selected(runs: Sequence[Run], attribute: str, names: Sequence[str] | None) -> list[Run]:
    """
    :param attribute: ``"variant"`` or ``"environment"``
    :param names: the values to keep, in this order; None for all
    :raises ValueError: for a value that no run has
    """
    if names is None:
        return list(runs)
    known = unique(getattr(run, attribute) for run in runs)
    for name in names:
        check_choice(attribute, name, known)
    return [run for name in unique(names) for run in runs if getattr(run, attribute) == name]


def scores_of(given: Sequence[tuple[str, str, str]]) -> dict[str, tuple[float, float]]:
    """
    :param given: environment and the two constants as text
    :raises ValueError: for constants that are no numbers, or equal
    """
    scores = {}
    for environment, *constants in given:
        try:
            zero, one = map(float, constants)
        except ValueError:
            zero = one = math.nan
        if not (math.isfinite(zero) and math.isfinite(one) and zero != one):
            raise ValueError(f"score of {environment}={constants!r} must be two different finite numbers")
        scores[environment] = (zero, one)
    return scores


def compare(arguments: argparse.Namespace) -> Comparison:
    """
    :param arguments: of :func:`parser`
    :raises ValueError: naming what cannot be
    """
    if arguments.steps is not None:
        check_number("steps", arguments.steps, 1, integer=True)
    runs = selected(read(arguments.sources), "variant", arguments.variants)
    runs = selected(runs, "environment", arguments.environments)
    if arguments.variants:  # the order of the variants, not of the environments
        runs.sort(key=lambda run: arguments.variants.index(run.variant))
    if arguments.steps is not None:
        for run in runs:
            if run.until(arguments.steps) is None:
                print(f"{run.name}: no evaluation up to step {arguments.steps}, left out", file=sys.stderr)
        runs = [cut for run in runs if (cut := run.until(arguments.steps)) is not None]
    if not runs:
        raise ValueError("no run is left to report on")
    baseline = arguments.baseline
    if baseline is None and len({run.variant for run in runs}) > 1:
        baseline = runs[0].variant
    return Comparison(runs, unique(arguments.metric or RETURNS[:1]), baseline, scores_of(arguments.score))


def report(arguments: Sequence[str]) -> None:
    """
    Write the table and the pictures, print the table, and say on stderr what readers must know.

    :param arguments: the command line after the program's name
    """
    command = parser()
    given = command.parse_args(arguments)
    try:
        comparison = compare(given)
        out: Path = given.out / "report" if given.out.is_dir() else given.out
        out.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(out.parent, os.W_OK):
            raise ValueError(f"--out {given.out}: the folder {out.parent} cannot be written")
    except (ValueError, OSError) as error:
        command.error(str(error))
    text = table(comparison)
    print(text)
    for sentence in comparison.problems():
        print(sentence, file=sys.stderr)
    files = [out.with_name(f"{out.name}.md")]
    with replacing(files[0], ".md") as temporary:
        temporary.write_text(text)
    for name, figure in draw(comparison, given.pictures).items():
        files.append(out.with_name(f"{out.name}_{name}.png"))
        with replacing(files[-1], ".png") as temporary:
            figure.savefig(temporary)
    print("\n".join(str(file) for file in files))
