_base_ = [
    'mmpretrain::_base_/models/resnet50.py',
    'mmpretrain::_base_/datasets/imagenet_bs32.py',
    'mmpretrain::_base_/default_runtime.py',
]

# 1 % of the labels, SwAV's protocol (its eval_semisup.py): everything is fine-tuned for 20 epochs
# in batches of 256, the classifier at a rate of its own. The paper says both "frozen weights" and
# "the same configuration setting as in (Caron et al., 2020)"; this is the latter.
custom_imports = dict(imports=['mim_plugins.mmpretrain'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone.'),
    )
)

# Lines 'n01440764/n01440764_10026.JPEG 0' for SimCLR's lists of images, see README.md.
train_dataloader = dict(
    dataset=dict(split='', ann_file='meta/train_1percent.txt', data_prefix='train')
)

lr, lr_last_layer = 0.02, 5.0
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=lr, momentum=0.9, weight_decay=0.0),
    paramwise_cfg=dict(custom_keys={'head.': dict(lr_mult=lr_last_layer / lr)}),
)
param_scheduler = [
    dict(type='MultiStepLR', by_epoch=True, milestones=[12, 16], gamma=0.2)
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=20, val_interval=1)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=3, save_best='auto')
)
