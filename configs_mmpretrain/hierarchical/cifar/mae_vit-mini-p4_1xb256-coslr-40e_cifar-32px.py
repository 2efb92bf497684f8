# The demo's small MAE on CIFAR: an image folder $CIFAR_DATA with train/<class> and test/<class>.
# tools/test.py scores its reconstructions of the test images without masking.
_base_ = '../../demo/mae-random_vit-mini-p8_1xb64-coslr-demo.py'

image_size = 32
patch_size = 4
epochs = 40
data_root = '{{$CIFAR_DATA:data/cifar}}'
extensions = ('.jpg', '.jpeg', '.png', '.webp')

model = dict(
    backbone=dict(img_size=image_size, patch_size=patch_size),
    neck=dict(patch_size=patch_size, num_patches=(image_size // patch_size)**2),
    head=dict(patch_size=patch_size),
)

train_dataloader = dict(
    batch_size=256,
    dataset=dict(
        data_root=data_root,
        extensions=extensions,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(
                type='RandomResizedCrop',
                scale=image_size,
                crop_ratio_range=(0.5, 1.0),
                backend='pillow',
                interpolation='bicubic'),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackInputs'),
        ],
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(
        type='CosineAnnealingLR',
        T_max=epochs,
        by_epoch=True,
        begin=0,
        end=epochs,
        convert_to_iter_based=True)
]
train_cfg = dict(max_epochs=epochs)

custom_hooks = [dict(type='HierarchicalMaskingAnalyzer', interval=10)]

test_dataloader = dict(
    batch_size=256,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='CustomDataset',
        data_root=data_root,
        data_prefix='test',
        extensions=extensions,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(image_size, image_size), backend='pillow'),
            dict(type='PackInputs'),
        ],
    ),
)
test_evaluator = dict(type='ReconstructionMetric')
test_cfg = dict(type='ReconstructionTestLoop', masked=False)

auto_scale_lr = dict(base_batch_size=256)
