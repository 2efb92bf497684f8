"""Exact resumption after an interruption."""

from __future__ import annotations

from functools import partial

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmengine.runner.utils import set_random_seed
from mmpretrain.registry import HOOKS

from .._seed import check_loader, epoch_seed


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seeds every epoch anew, so that ``--resume`` continues as if nothing had happened.

    mmengine saves no random states: a resumed run, stock MAE's too, draws other masks and
    augmentations than the uninterrupted one. With this hook they depend on
    ``randomness.seed``, the epoch and the rank alone, not on what happened before, and
    nothing needs to be saved::

        randomness = dict(seed=0)
        custom_hooks = [dict(type='EpochSeedHook')]

    Python, numpy and torch are seeded before the epoch's data-loader iterator is made. The
    workers of the data loader, which mmengine seeds alike whenever they are started, get
    seeds of the epoch too. Masks then differ between ranks even with
    ``diff_rank_seed=False``, and training differs from a run without the hook.

    Two things of mmengine's stand in the way of an exact continuation, and are warned of: a
    checkpoint from within an epoch (``by_epoch=False``), whose epoch is done again from its
    start, and ``accumulative_counts`` that do not divide the iterations of an epoch, since
    the gradients accumulated at its end are lost.

    Raises:
        ValueError: When training starts, if ``randomness.seed`` is not set, the train loop
            counts no epochs, or the data loader has ``persistent_workers=True``, whose
            random states nobody can restore.
    """

    priority = "VERY_HIGH"  # before other hooks of the epoch draw anything

    def before_run(self, runner: Runner) -> None:
        """Check the seed: before a checkpoint is loaded, whose seed the sampler does not know."""
        if runner._randomness_cfg.get("seed") is None:
            raise ValueError(
                "EpochSeedHook needs a seed in the config: randomness = dict(seed=0), got none"
            )

    def before_train(self, runner: Runner) -> None:
        """Check loop and data loader."""
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            raise ValueError(
                "EpochSeedHook needs train_cfg of an EpochBasedTrainLoop, got "
                f"{type(runner.train_loop).__name__}"
            )
        check_loader(runner.train_dataloader)
        length = len(runner.train_dataloader)
        counts = runner.optim_wrapper._accumulative_counts
        reasons = {
            f"the checkpoint of iteration {runner.iter} is from within an epoch": runner.iter
            % length,
            f"accumulative_counts={counts} does not divide the {length} iterations of an epoch": (
                length % counts
            ),
        }
        for reason in filter(reasons.get, reasons):
            runner.logger.warning(
                f"EpochSeedHook: {reason}, so a resumed run ends with other weights than one "
                "that was never interrupted."
            )

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed this process, and the workers it is about to start."""
        seed = epoch_seed(runner._randomness_cfg["seed"], runner.epoch, get_rank())
        set_random_seed(seed)
        init = runner.train_dataloader.worker_init_fn
        if isinstance(init, partial) and "seed" in init.keywords:
            keywords = {**init.keywords, "seed": seed, "rank": 0}  # the seed has the rank in it
            runner.train_dataloader.worker_init_fn = partial(init.func, **keywords)
