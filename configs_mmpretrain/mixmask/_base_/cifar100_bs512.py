# Two views of CIFAR-100. The paper gives no augmentation: this is the one of MoCo's CIFAR demo and
# of Un-Mix, with batches of 512 (table 8).
data_preprocessor = dict(
    type='SelfSupDataPreprocessor',
    # CIFAR100 is loaded as RGB
    mean=[129.304, 124.070, 112.434],
    std=[68.170, 65.392, 70.418],
    to_rgb=False,
)

view_pipeline = [
    dict(type='RandomResizedCrop', scale=32, crop_ratio_range=(0.08, 1.0), backend='pillow'),
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
        channel_weights=(0.2989, 0.587, 0.114),
    ),
    dict(type='RandomFlip', prob=0.5),
]

train_pipeline = [
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
        type='CIFAR100', data_root='data/cifar100', split='train', pipeline=train_pipeline
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
            type='CIFAR100',
            data_root='data/cifar100',
            split='test',
            pipeline=[dict(type='PackInputs')],
        ),
    ),
)
