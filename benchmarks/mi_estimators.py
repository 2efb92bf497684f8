"""InfoNCE and CLUB on correlated Gaussians of known mutual information.

    python benchmarks/mi_estimators.py --plot docs/images/mi_estimators.png

x and z have ``--dim`` independent pairs of coordinates of correlation rho, so that I(x; z) is
``-dim / 2 log(1 - rho^2)`` nats. The critic of the lower bound and the variational network of
the upper bound are trained on fresh samples, then both are measured on others; besides, both
with what they would learn at best: CLUB with the true conditional, InfoNCE's limit ``log n``.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from mim_plugins.regularizers import club, infonce
from mim_plugins.regularizers.bounds import gaussian_log_likelihood


def pairs(rho: float, number: int, dim: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(number, dim)
    return x, rho * x + math.sqrt(1 - rho**2) * torch.randn(number, dim)


def network(dim: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, 128), nn.GELU(), nn.Linear(128, out))


def measure(rho: float, dim: int, batch: int, steps: int) -> dict[str, list[float]]:
    """Trained estimates on 50 batches that were not trained on."""
    torch.manual_seed(0)
    critics, q = nn.ModuleList([network(dim, 32), network(dim, 32)]), network(dim, 2 * dim)
    optimizer = torch.optim.Adam([*critics.parameters(), *q.parameters()], lr=2e-3)
    for _ in range(steps):
        x, z = pairs(rho, batch, dim)
        lower = infonce(critics[0](z), critics[1](x))
        loss = -lower - gaussian_log_likelihood(z, *q(x).chunk(2, dim=1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found: dict[str, list[float]] = {"lower": [], "upper": [], "upper, true q": []}
    log_variance = math.log(1 - rho**2)
    with torch.no_grad():
        for _ in range(50):
            x, z = pairs(rho, batch, dim)
            mean, trained = q(x).chunk(2, dim=1)
            found["lower"].append(infonce(critics[0](z), critics[1](x)).item())
            found["upper"].append(club(z[None], mean[None], trained[None]).item())
            true = (rho * x)[None], torch.full_like(z, log_variance)[None]
            found["upper, true q"].append(club(z[None], *true).item())
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dim", type=int, default=4)
    parser.add_argument("--batch", type=int, default=256, help="n of InfoNCE")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    print(f"torch {torch.__version__}")

    rhos = (0.0, 0.3, 0.5, 0.65, 0.8, 0.9)
    truth = [-0.5 * args.dim * math.log(1 - rho**2) for rho in rhos]
    found = [measure(rho, args.dim, args.batch, args.steps) for rho in rhos]
    print(f"{args.dim} pairs, n = {args.batch}, nats (mean and standard deviation of 50 batches)")
    print("| rho | truth | " + " | ".join(found[0]) + " |")
    print("|---" * (2 + len(found[0])) + "|")
    for rho, true, row in zip(rhos, truth, found, strict=True):
        cells = [torch.tensor(values) for values in row.values()]
        numbers = " | ".join(f"{v.mean():.2f} +- {v.std():.2f}" for v in cells)
        print(f"| {rho} | {true:.2f} | {numbers} |")

    if args.plot:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(5.5, 4.5), layout="constrained")
        axes.plot(truth, truth, color="black", linewidth=1, label="truth")
        labels = {
            "lower": "InfoNCE, trained critic",
            "upper": "CLUB, trained q",
            "upper, true q": "CLUB, true conditional",
        }
        for name, marker in (("lower", "o"), ("upper", "s"), ("upper, true q", "^")):
            values = torch.tensor([row[name] for row in found])
            axes.errorbar(
                truth, values.mean(dim=1), values.std(dim=1),
                marker=marker, capsize=3, linewidth=1, label=labels[name],
            )  # fmt: skip
        limit = math.log(args.batch)
        axes.axhline(limit, color="grey", linestyle=":", linewidth=1)
        axes.text(0, limit, f" log {args.batch}", va="bottom", color="grey")
        axes.set_xlabel("mutual information (nats)")
        axes.set_ylabel("estimate (nats)")
        axes.legend()
        args.plot.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(args.plot, dpi=120)


if __name__ == "__main__":
    main()
