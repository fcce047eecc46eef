"""Draws loss.csv: `python experiments/tiny_policy/plot.py`."""

import csv
from pathlib import Path

import matplotlib.pyplot as plt

HERE = Path(__file__).parent

with (HERE / "loss.csv").open() as file:
    rows = list(csv.DictReader(file))
figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
axis.plot([int(row["step"]) for row in rows], [float(row["loss"]) for row in rows], color="#0072B2")
axis.set(xlabel="step", ylabel="loss, nats a token", yscale="log", title="Pretraining the embedded policy")
axis.set_yticks([0.2, 0.3, 0.5, 1, 2, 5], ["0.2", "0.3", "0.5", "1", "2", "5"])
axis.minorticks_off()
axis.grid(alpha=0.3)
axis.spines[["top", "right"]].set_visible(False)
figure.savefig(HERE / "loss.png", dpi=150)
