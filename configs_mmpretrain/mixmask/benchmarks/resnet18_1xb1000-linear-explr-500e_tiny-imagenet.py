_base_ = './resnet18_1xb1000-linear-explr-500e_cifar100.py'

# Class folders under data/tiny-imagenet-200/train and data/tiny-imagenet-200/val, see README.md.
data_preprocessor = dict(
    num_classes=200,
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
)

model = dict(backbone=dict(strides=(2, 2, 2, 2)), head=dict(num_classes=200))

pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root='data/tiny-imagenet-200',
        data_prefix='train',
        pipeline=pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root='data/tiny-imagenet-200',
        data_prefix='val',
        pipeline=pipeline,
    )
)
test_dataloader = val_dataloader
