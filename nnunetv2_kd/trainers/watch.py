"""What the user watches: every term's value and share, per epoch, in a CSV file and a plot; and the guard that stops a
distillation that is silently off."""

import csv
import math
from pathlib import Path

import matplotlib

matplotlib.use("agg")  # before pyplot, as nnU-Net does: trainings run where there is no screen

import matplotlib.pyplot as plt
from torch import Tensor

from nnunetv2_kd.errors import KDError

GUARDED_ITERATIONS = 10


class TermGuard:
    """Stops the training where a term is exactly 0, or not finite, in all of its first iterations."""

    def __init__(self, iterations: int = GUARDED_ITERATIONS) -> None:
        self.iterations = iterations
        self._seen: dict[str, list[float]] = {}

    def check(self, values: dict[str, Tensor]) -> None:
        """Look at the unweighted terms of one iteration; costs nothing once the first iterations are over.

        Raises:
            KDError: names the term and what is wrong with it.
        """
        for name, value in values.items():
            seen = self._seen.setdefault(name, [])
            if name == "segmentation" or len(seen) == self.iterations:
                continue
            seen.append(float(value))
            if len(seen) < self.iterations:
                continue
            if all(v == 0 for v in seen):
                raise KDError(
                    f"The term {name} was exactly 0 in the first {self.iterations} iterations, so it teaches nothing. "
                    "Either teacher and student are the same network, or no patch holds what it compares (region "
                    "terms need two labelled regions in a patch). Set its weight to 0 to train without it."
                )
            if not any(math.isfinite(v) for v in seen):
                raise KDError(f"The term {name} was not finite in any of the first {self.iterations} iterations.")


class TermHistory:
    """Means per epoch of all loss parts, kept in a CSV file.

    Args:
        folder: the fold's output folder.
        weights: weight of every term.
    """

    def __init__(self, folder: str, weights: dict[str, float]) -> None:
        self.csv_file = Path(folder) / "kd_progress.csv"
        self.png_file = Path(folder) / "kd_progress.png"
        self.weights = weights
        self.rows: list[dict[str, float]] = []
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def resume(self, epoch: int) -> None:
        """Read back the epochs before ``epoch``; later ones are of a training that was cut off."""
        if epoch > 0 and self.csv_file.is_file():
            with self.csv_file.open(newline="") as stream:
                rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(stream)]
            self.rows = [row for row in rows if row["epoch"] < epoch]

    def add(self, values: dict[str, Tensor]) -> None:
        """The loss parts of one iteration; summed on their device, so that nothing waits for it."""
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
        self._count += 1

    def means(self) -> dict[str, float]:
        """Means since the last call, and a fresh start."""
        means = {name: float(total) / self._count for name, total in self._sums.items()}
        self._sums, self._count = {}, 0
        return means

    def close_epoch(self, epoch: int, factor: float, means: dict[str, float]) -> dict[str, float]:
        """Append an epoch to the CSV file, with every term's share, and redraw the plot.

        The share of a term is its weighted value among the absolute values of all loss parts (nnU-Net's loss can be
        negative, as it contains minus the Dice).

        Raises:
            KDError: where a term is not finite, which no later epoch can mend.
        """
        lost = [name for name, value in means.items() if not math.isfinite(value)]
        if lost:
            raise KDError(f"In epoch {epoch} the mean of {', '.join(lost)} is not finite. Training stops here.")
        weighted = {name: factor * self.weights[name] * value for name, value in means.items() if name in self.weights}
        whole = abs(means["segmentation"]) + sum(weighted.values()) or 1.0
        row = {"epoch": float(epoch), "factor": factor, **means}
        row |= {f"{name}_share": value / whole for name, value in weighted.items()}
        self.rows.append(row)
        self._write()
        self._plot()
        return row

    def _write(self) -> None:
        with self.csv_file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(self.rows[-1]), restval="nan", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self.rows)

    def _plot(self) -> None:
        epochs = [row["epoch"] for row in self.rows]
        figure, (values, shares) = plt.subplots(2, 1, figsize=(9, 9), sharex=True, layout="constrained")
        values.plot(epochs, [row["segmentation"] for row in self.rows], "k", label="nnU-Net's loss")
        for name, weight in self.weights.items():
            weighted = [row["factor"] * weight * row.get(name, math.nan) for row in self.rows]
            values.plot(epochs, weighted, label=f"{weight:g} × {name}")
            shares.plot(epochs, [100 * row.get(f"{name}_share", math.nan) for row in self.rows], label=name)
        values.set_ylabel("loss part (weighted, with the schedule's factor)")
        shares.set(xlabel="epoch", ylabel="share of the total loss [%]", ylim=(0, 100))
        for axes in (values, shares):
            axes.legend()
            axes.grid(alpha=0.3)
        figure.savefig(self.png_file, dpi=100)
        plt.close(figure)


def in_log_line(row: dict[str, float], weights: dict[str, float]) -> str:
    """``region_kl 0.1234 (12.3 %), ...; schedule 1.00``"""
    terms = [f"{name} {row[name]:.4f} ({100 * row[f'{name}_share']:.1f} %)" for name in weights]
    return f"{', '.join(terms)}; nnU-Net's loss {row['segmentation']:.4f}; schedule {row['factor']:.2f}"
