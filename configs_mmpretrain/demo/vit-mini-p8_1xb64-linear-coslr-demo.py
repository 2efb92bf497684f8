# Linear probe of a demo checkpoint: the stock MAE linear-probe config, cut down alike.
_base_ = 'mmpretrain::mae/benchmarks/vit-base-p16_8xb2048-linear-coslr-90e_in1k.py'

# After _base_: with an import first, mmengine takes this for another kind of config.
import os  # noqa: E402

custom_imports = dict(imports=['mim_plugins.mmpretrain'], allow_failed_imports=False)

image_size = int(os.environ.get('DEMO_IMAGE_SIZE', 64))
patch_size = int(os.environ.get('DEMO_PATCH_SIZE', 8))
epochs = int(os.environ.get('DEMO_PROBE_EPOCHS', 8))
batch_size = int(os.environ.get('DEMO_BATCH_SIZE', 64))
num_classes = int(os.environ.get('DEMO_NUM_CLASSES', 15))
dims = 128
extensions = ('.jpg', '.jpeg', '.png', '.webp', '.bmp')

data_preprocessor = dict(num_classes=num_classes)
model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True, embed_dims=dims, num_layers=4, num_heads=4, feedforward_channels=4 * dims
        ),
        img_size=image_size,
        patch_size=patch_size,
        frozen_stages=4,
        init_cfg=dict(
            checkpoint=os.environ.get('DEMO_CHECKPOINT', 'demo_output/random_seed0/epoch_18.pth')
        ),
    ),
    neck=dict(input_features=dims),
    head=dict(num_classes=num_classes, in_channels=dims),
)

train_dataloader = dict(
    batch_size=batch_size,
    num_workers=1,
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root=os.environ.get('DEMO_DATA', 'data/photos'),
        data_prefix='train',
        extensions=extensions,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(
                type='RandomResizedCrop',
                scale=image_size,
                crop_ratio_range=(0.5, 1.0),
                backend='pillow',
                interpolation='bicubic',
            ),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackInputs'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=batch_size,
    num_workers=1,
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root=os.environ.get('DEMO_DATA', 'data/photos'),
        data_prefix='test',
        extensions=extensions,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(image_size, image_size), backend='pillow'),
            dict(type='PackInputs'),
        ],
    ),
)
val_evaluator = dict(topk=(1,))
test_dataloader = val_dataloader
test_evaluator = val_evaluator

# Far fewer steps than upstream's 90 epochs on ImageNet, hence far larger ones.
optim_wrapper = dict(optimizer=dict(lr=4.0))
param_scheduler = [
    dict(
        type='CosineAnnealingLR',
        T_max=epochs,
        by_epoch=True,
        begin=0,
        end=epochs,
        convert_to_iter_based=True,
    )
]

train_cfg = dict(max_epochs=epochs, val_interval=epochs)
default_hooks = dict(checkpoint=dict(interval=-1, save_last=True), logger=dict(interval=10))
