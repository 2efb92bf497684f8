# What the CIFAR-100 and Tiny-ImageNet configs share: 1000 epochs.
_base_ = 'mmpretrain::_base_/default_runtime.py'

custom_imports = dict(imports=['mim_plugins.mmpretrain'], allow_failed_imports=False)

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1000)
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', interval=50, max_keep_ckpts=3)
)
# Ranks mix differently.
randomness = dict(seed=0, diff_rank_seed=True)
