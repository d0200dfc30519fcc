"""
Table and curves of the runs that ``benchmarks/learning.py`` left.

    python benchmarks/learning_report.py --results benchmarks/results/learning

Prints a Markdown table of the last evaluation (mean over seeds, in brackets each seed) and writes
<results>/<env>.png: mean over seeds, every seed as a thin line. Unfinished runs (``*.partial.csv``) are left out of the
table and drawn dotted.
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

# As the columns call them, and as everything else does
EVALUATIONS = {"deterministic": "deterministic", "stochastic": "sampled"}
# Alike in all pictures; other variants get the colours that follow.
LABELS = {"diffsac": "DiffSAC", "sac": "SAC", "diffwpo": "DiffWPO", "diffppo": "DiffPPO", "ppo": "PPO"}
LABELS |= {"diffsac-fullchain": "full chain"}


def read(path: Path) -> dict[str, np.ndarray]:
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]} if rows else {}


def variants_of(folder: Path, pattern: str) -> dict[str, dict[int, dict[str, np.ndarray]]]:
    """:return: variant -> seed -> columns"""
    runs: dict[str, dict[int, dict[str, np.ndarray]]] = {}
    for path in sorted(folder.glob(pattern)):
        variant, _, seed = path.name.split(".")[0].rpartition("_seed")
        columns = read(path)
        if columns:
            runs.setdefault(variant, {})[int(seed)] = columns
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", default=str(Path(__file__).parent / "results" / "learning"))
    args = parser.parse_args()
    print(
        "| environment | variant | seeds | steps | deterministic | sampled | training seconds | commits |\n" + "|---" * 8 + "|"
    )
    for folder in sorted(path for path in Path(args.results).iterdir() if path.is_dir()):
        finished = variants_of(folder, "*_seed*[0-9].csv")
        unfinished = variants_of(folder, "*.partial.csv")
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        for axes, evaluation in zip(figure.subplots(1, 2, sharey=True), EVALUATIONS, strict=True):
            variants = sorted({*finished, *unfinished})
            colors = [*LABELS, *(variant for variant in variants if variant not in LABELS)]
            for variant in variants:
                color = f"C{colors.index(variant)}"
                runs = list(finished.get(variant, {}).values())
                for run in runs:
                    axes.plot(run["timesteps"], run[f"{evaluation}_mean"], color=color, linewidth=0.6, alpha=0.6)
                for run in unfinished.get(variant, {}).values():
                    axes.plot(run["timesteps"], run[f"{evaluation}_mean"], color=color, linewidth=0.8, linestyle=":")
                if runs:
                    label = f"{LABELS.get(variant, variant)}, seeds: {len(runs)}"
                    mean = np.mean([run[f"{evaluation}_mean"] for run in runs], axis=0)
                    axes.plot(runs[0]["timesteps"], mean, color=color, linewidth=2, label=label)
            axes.set(title=f"{folder.name}, {EVALUATIONS[evaluation]} actions", xlabel="environment steps")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        figure.axes[0].set_ylabel("return of an episode")
        figure.savefig(folder.with_suffix(".png"), dpi=130)
        for variant, seeds in finished.items():
            runs = list(seeds.values())
            last = {name: [run[name][-1] for run in runs] for name in runs[0]}
            cells = [folder.name, variant, f"{len(runs)}", f"{last['timesteps'][0]:.0f}"]
            for evaluation in EVALUATIONS:
                returns = last[f"{evaluation}_mean"]
                cells.append(f"{np.mean(returns):.0f} ({', '.join(f'{value:.0f}' for value in returns)})")
            reports = [json.loads((folder / f"{variant}_seed{seed}.json").read_text()) for seed in seeds]
            commits = ", ".join(sorted({report["commit"][:7] for report in reports}))
            print("| " + " | ".join([*cells, f"{np.mean(last['seconds']):.0f}", commits]) + " |")


if __name__ == "__main__":
    main()
