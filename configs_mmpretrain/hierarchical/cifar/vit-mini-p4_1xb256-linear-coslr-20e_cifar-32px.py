# Linear probe of a checkpoint of the sweep, $CIFAR_CHECKPOINT. For patches of 2 pixels:
# --cfg-options model.backbone.patch_size=2
_base_ = '../../demo/vit-mini-p8_1xb64-linear-coslr-demo.py'

image_size = 32
epochs = 20
num_classes = {{'$CIFAR_CLASSES:10'}}
data_root = '{{$CIFAR_DATA:data/cifar}}'

data_preprocessor = dict(num_classes=num_classes)
model = dict(
    backbone=dict(
        img_size=image_size,
        patch_size=4,
        init_cfg=dict(checkpoint='{{$CIFAR_CHECKPOINT:work_dirs/cifar/epoch_40.pth}}')),
    head=dict(num_classes=num_classes),
)

train_dataloader = dict(
    batch_size=256,
    dataset=dict(
        data_root=data_root,
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
val_dataloader = dict(
    batch_size=256,
    dataset=dict(
        data_root=data_root,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(image_size, image_size), backend='pillow'),
            dict(type='PackInputs'),
        ],
    ),
)
test_dataloader = val_dataloader

param_scheduler = [
    dict(
        type='CosineAnnealingLR',
        T_max=epochs,
        by_epoch=True,
        begin=0,
        end=epochs,
        convert_to_iter_based=True)
]
train_cfg = dict(max_epochs=epochs, val_interval=epochs)

auto_scale_lr = dict(base_batch_size=256)
