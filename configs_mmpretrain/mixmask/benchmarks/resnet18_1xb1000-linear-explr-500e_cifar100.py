_base_ = [
    'mmpretrain::_base_/models/resnet18_cifar.py',
    'mmpretrain::_base_/datasets/cifar100_bs16.py',
    'mmpretrain::_base_/default_runtime.py',
]

custom_imports = dict(imports=['mim_plugins.mmpretrain'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        frozen_stages=4,
        init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone.'),
    ),
    head=dict(num_classes=100),
)

# W-MSE's evaluation: 500 epochs of Adam in batches of 1000 images without augmentation, learning
# rate falling exponentially from 1e-2 to 1e-6. The paper says nothing of its linear probes here.
epochs = 500
train_dataloader = dict(
    batch_size=1000, num_workers=8, dataset=dict(pipeline=[dict(type='PackInputs')]))
val_dataloader = dict(batch_size=1000, num_workers=8)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator

optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='Adam', lr=1e-2, weight_decay=5e-6)
)
param_scheduler = [
    dict(
        type='ExponentialLR',
        gamma=(1e-6 / 1e-2)**(1 / epochs),
        by_epoch=True,
        begin=0,
        end=epochs)
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=50)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', interval=50, max_keep_ckpts=3)
)
