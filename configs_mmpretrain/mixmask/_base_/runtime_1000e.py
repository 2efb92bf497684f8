# What the CIFAR-100 and Tiny-ImageNet configs share: 1000 epochs, cosine schedule.
_base_ = 'mmpretrain::_base_/default_runtime.py'

custom_imports = dict(imports=['mim_plugins.mmpretrain'], allow_failed_imports=False)

param_scheduler = [
    dict(type='CosineAnnealingLR', T_max=1000, by_epoch=True, begin=0, end=1000)
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1000)
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', interval=50, max_keep_ckpts=3)
)
