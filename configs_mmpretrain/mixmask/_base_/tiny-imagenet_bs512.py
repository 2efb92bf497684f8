# Two views of Tiny-ImageNet, augmented like CIFAR-100 (cifar100_bs512.py).
# Class folders under data/tiny-imagenet-200/train, see README.md.
data_preprocessor = dict(
    type='SelfSupDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
)

view_pipeline = [
    dict(type='RandomResizedCrop', scale=64, crop_ratio_range=(0.08, 1.0), backend='pillow'),
    dict(
        type='RandomApply',
        transforms=[
            dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
        ],
        prob=0.8,
    ),
    dict(
        type='RandomGrayscale',
        prob=0.2,
        keep_channels=True,
        channel_weights=(0.114, 0.587, 0.2989),
    ),
    dict(type='RandomFlip', prob=0.5),
]

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='MultiView', num_views=2, transforms=[view_pipeline]),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=512,
    num_workers=8,
    drop_last=True,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='CustomDataset',
        data_root='data/tiny-imagenet-200',
        data_prefix='train',
        pipeline=train_pipeline,
    ),
)

# The metric of the paper: kNN among the training images, every 10 epochs.
knn_hook = dict(
    type='OnlineProbeHook',
    linear=False,
    projection=True,  # as MoCo's CIFAR demo
    interval=10,
    val_dataloader=dict(
        batch_size=512,
        num_workers=8,
        dataset=dict(
            type='CustomDataset',
            data_root='data/tiny-imagenet-200',
            data_prefix='val',
            pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
        ),
    ),
)
