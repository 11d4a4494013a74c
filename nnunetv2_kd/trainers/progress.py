"""Progress of a distillation: every term's value and shares per epoch, in a CSV file and a plot; and a guard that stops
a training in which distillation silently does nothing."""

import csv
import math
from collections.abc import Iterable, Mapping
from io import BytesIO, StringIO
from pathlib import Path

import matplotlib

matplotlib.use("agg")  # before importing pyplot, as nnU-Net does: trainings run without a screen

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.nnunet.files import set_aside, write_bytes, write_text

GUARDED_ITERATIONS = 50
HARDLY, NEARLY_ALONE = 0.01, 0.9  # shares of the gradient on the student
A_TENTH, HALF = 0.1, 0.5
Seen = dict[str, list[float]]


class TermGuard:
    """Remembers the terms of the first iterations, to stop a training in which one silently does nothing.

    A single iteration says little: under DDP, some workers may only draw patches without foreground, and AMP may skip
    steps.
    """

    def __init__(self, iterations: int = GUARDED_ITERATIONS) -> None:
        self.iterations = iterations
        self.seen: Seen = {}
        self.learnable: dict[str, bool] = {}
        self._count = 0

    def add(self, values: dict[str, Tensor], learnable: Mapping[str, bool]) -> bool:
        """Record one iteration's unweighted terms; does nothing after the first iterations.

        Args:
            values: nnU-Net's loss and every term.
            learnable: whether each term had a gradient at all.

        Returns:
            Whether this was the last of the first iterations, so that `check_first_terms` can be called.
        """
        self._count += 1
        if self._count > self.iterations:
            return False
        for name, value in values.items():
            if name != "segmentation":
                self.seen.setdefault(name, []).append(float(value))
                self.learnable[name] = self.learnable.get(name, False) or learnable[name]
        return self._count == self.iterations


def check_first_terms(workers: list[Seen], learnable: Mapping[str, bool]) -> None:
    """Check that no term was exactly 0, not finite, or without a gradient in all first iterations of all workers.

    Args:
        workers: what each worker has recorded.
        learnable: whether each term had a gradient in any iteration of this worker.

    Raises:
        KDError: names the term and what is wrong with it.
    """
    for name in workers[0]:
        seen = [value for worker in workers for value in worker[name]]
        if all(v == 0 for v in seen):
            raise KDError(
                f"The term {name} was exactly 0 in the first {len(workers[0][name])} iterations, so it teaches "
                "nothing. Either teacher and student are the same network, or no patch holds what it compares (region "
                "terms need two labelled regions in a patch). Set its weight to 0 to train without it."
            )
        if not any(math.isfinite(v) for v in seen):
            raise KDError(f"The term {name} was not finite in any of the first {len(workers[0][name])} iterations.")
        if not learnable[name]:
            raise KDError(
                f"The term {name} had no gradient in any of the first {len(workers[0][name])} iterations, so the "
                "student learns nothing from it: its value does not depend on the student, or is detached."
            )


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
        self._advised: set[str] = set()
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    def resume(self, epoch: int) -> list[str]:
        """Read back the epochs before ``epoch``; later ones are from a training that was interrupted. A file that
        cannot be read is set aside, because the training does not need it.

        Returns:
            Lines for the log.
        """
        if epoch == 0 or not self.csv_file.is_file():
            return []
        try:
            with self.csv_file.open(newline="", encoding="utf-8") as stream:
                rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(stream)]
            self.rows = [row for row in rows if row["epoch"] < epoch]
        except (OSError, ValueError, TypeError, KeyError, AttributeError, csv.Error) as error:
            self.rows = []
            return [f"WARNING: {set_aside(self.csv_file)} ({type(error).__name__}); its curves begin anew."]
        if not self.rows:
            return [f"WARNING: {set_aside(self.csv_file)} (it holds no epoch before {epoch}); its curves begin anew."]
        return []

    def add(
        self,
        values: Mapping[str, Tensor],
        weighted: Mapping[str, Tensor],
        factor: float,
        shares: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
    ) -> None:
        """Record one iteration.

        Values are summed on their device, so that nothing waits for it. Values that are not finite are left out: AMP
        skips such a step, and the training goes on normally.

        Args:
            values: nnU-Net's loss and every term, unweighted.
            weighted: every term as it enters the total.
            factor: the schedule's.
            shares: how much each of several teachers counted, by name.
            gradients: gradient lengths of nnU-Net's loss and of every term as it enters the total, if they were
                measured; otherwise empty.
        """
        parts = {
            **values,
            **{f"{name}_weighted": value for name, value in weighted.items()},
            **{f"{name}_gradient": length for name, length in gradients.items()},
            "factor": torch.tensor(factor),
            **shares,
        }
        for name, value in parts.items():
            finite = torch.isfinite(value)
            kept = torch.where(finite, value, torch.zeros_like(value))
            self._sums[name] = self._sums[name] + kept if name in self._sums else kept
            self._counts[name] = self._counts[name] + finite if name in self._counts else finite.long()

    def means(self) -> dict[str, float]:
        """Means since the last call, which are then reset; nan for a part that was never finite."""
        means = {
            name: float(total) / int(self._counts[name]) if int(self._counts[name]) else math.nan
            for name, total in self._sums.items()
        }
        self._sums, self._counts = {}, {}
        return means

    def close_epoch(self, epoch: int, means: dict[str, float]) -> dict[str, float]:
        """Append an epoch to the CSV file, with every term's shares, and redraw the plot.

        A term's share of the loss is its weighted value, divided by the sum of the absolute values of all parts
        (nnU-Net's loss can be negative, because it contains minus the Dice). Its share of the gradient is its
        gradient's length, divided by the sum of all lengths.

        Raises:
            KDError: if a part was not finite in any iteration of the epoch.
        """
        derived = ("_weighted", "_gradient")
        lost = [name for name, value in means.items() if not math.isfinite(value) and not name.endswith(derived)]
        if lost:
            raise KDError(f"In epoch {epoch} {', '.join(lost)} was never finite. Training stops here.")
        whole = abs(means["segmentation"]) + sum(means[f"{name}_weighted"] for name in self.weights) or 1.0
        row = {"epoch": float(epoch), **means}
        row |= {f"{name}_share": means[f"{name}_weighted"] / whole for name in self.weights}
        row |= {f"{name}_gradient_share": share for name, share in gradient_shares(means, self.weights).items()}
        self.rows.append(row)
        self._write()
        self._plot_epochs()
        return row

    def advice(self, row: dict[str, float]) -> list[str]:
        """Lines for the log after an epoch: after the first, the terms' shares of the gradient; and once for every term
        whose share is tiny or nearly everything, the weight that would change this."""
        lines = []
        shares = gradient_shares(row, self.weights, row["factor"])
        if shares and len(self.rows) == 1:
            listed = ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items())
            lines.append(f"share of the gradient on the student: {listed}; nnU-Net's loss has the rest")
        for name, share in shares.items():
            target = A_TENTH if share < HARDLY else HALF if share > NEARLY_ALONE else None
            if target is None or name in self._advised:
                continue
            self._advised.add(name)
            if share == 0:
                lines.append(f"WARNING: the term {name} has no gradient on the student at all.")
                continue
            weight = self.weights[name] * target / (1 - target) * (1 - share) / share
            lines.append(
                f"NOTE: the term {name} makes up {100 * share:.2g} % of the gradient on the student. A weight of "
                f"{weight:.2g} instead of {self.weights[name]:g} would bring it to {100 * target:.0f} %; with "
                "'balance: gradient' in the options, weights are such ratios."
            )
        return lines

    def _write(self) -> None:
        with StringIO(newline="") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(self.rows[-1]), restval="nan", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self.rows)
            write_text(self.csv_file, stream.getvalue())

    def _plot_epochs(self) -> None:
        with plt.rc_context(matplotlib.rcParamsDefault):  # nnU-Net sets a huge font for all figures of the process
            self._draw_epochs()

    def _draw_epochs(self) -> None:
        epochs = [row["epoch"] for row in self.rows]
        marker = "o" if len(epochs) == 1 else None
        figure, (values, shares, gradients) = plt.subplots(3, 1, figsize=(9, 12), sharex=True, layout="constrained")
        values.plot(epochs, [row["segmentation"] for row in self.rows], "k", marker=marker, label="nnU-Net's loss")
        for name, weight in self.weights.items():
            weighted = [row.get(f"{name}_weighted", math.nan) for row in self.rows]
            values.plot(epochs, weighted, marker=marker, label=f"{weight:g} × {name}")
            share = [100 * row.get(f"{name}_share", math.nan) for row in self.rows]
            shares.plot(epochs, share, marker=marker, label=name)
            share = [100 * row.get(f"{name}_gradient_share", math.nan) for row in self.rows]
            gradients.plot(epochs, share, marker=marker, label=name)
        values.set_ylabel("loss part (weighted, with the schedule's factor)")
        shares.set(ylabel="share of the total loss [%]", ylim=(0, 100))
        gradients.set(xlabel="epoch", ylabel="share of the gradient [%]", ylim=(0, 100))
        for axes in (values, shares, gradients):
            axes.legend()
            axes.grid(alpha=0.3)
        with BytesIO() as picture:
            figure.savefig(picture, format="png", dpi=100)
            write_bytes(self.png_file, picture.getvalue())
        plt.close(figure)


def in_log_line(row: dict[str, float], weights: dict[str, float]) -> str:
    """``region_kl 0.1234 (12.3 %), ...; nnU-Net's loss -0.5; schedule 1.00``, and how much each of
    several teachers counted."""
    terms = [f"{name} {row[name]:.4f} ({100 * row[f'{name}_share']:.1f} %)" for name in weights]
    line = f"{', '.join(terms)}; nnU-Net's loss {row['segmentation']:.4f}; schedule {row['factor']:.2f}"
    teachers = [f"{row[name]:.3f}" for name in row if name.startswith("weight_of_teacher_")]
    return f"{line}; teachers' weights {' '.join(teachers)}" if teachers else line


def gradient_shares(row: Mapping[str, float], names: Iterable[str], factor: float = 1.0) -> dict[str, float]:
    """Share of each term in the sum of gradient lengths on the student; empty if they were not measured.

    Args:
        row: with ``segmentation_gradient`` and one ``NAME_gradient`` per term, which include the schedule's factor.
        names: of the terms.
        factor: the schedule's, to divide out; 1 leaves it in.
    """
    if "segmentation_gradient" not in row or factor <= 0:
        return {}
    lengths = {name: row[f"{name}_gradient"] / factor for name in names}
    whole = row["segmentation_gradient"] + sum(lengths.values())
    if not math.isfinite(whole) or whole <= 0:
        return {}
    return {name: length / whole for name, length in lengths.items()}
