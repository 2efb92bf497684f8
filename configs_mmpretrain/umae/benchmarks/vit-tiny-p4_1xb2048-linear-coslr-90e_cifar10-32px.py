_base_ = 'mmpretrain::mae/benchmarks/vit-base-p16_8xb2048-linear-coslr-90e_in1k.py'

# Linear probe on CIFAR-10 of a ViT-Tiny of patch size 4: batch (8192 images, 4 times 2048 on one
# GPU) and learning rate as on ImageNet.

custom_imports = dict(imports=['mim_plugins.mmpretrain'], allow_failed_imports=False)

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='CIFAR10',
        data_root='data/cifar10',
        split='train',
        pipeline=[
            dict(type='RandomResizedCrop', scale=32, crop_ratio_range=(0.2, 1.0)),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackInputs')
        ]))
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='CIFAR10',
        data_root='data/cifar10',
        split='test',
        pipeline=[dict(type='PackInputs')]))
test_dataloader = val_dataloader

data_preprocessor = dict(
    num_classes=10, mean=[125.307, 122.961, 113.8575], std=[51.5865, 50.847, 51.255], to_rgb=False)

model = dict(
    backbone=dict(arch='deit-tiny', img_size=32, patch_size=4),
    neck=dict(input_features=192),
    head=dict(num_classes=10, in_channels=192))

optim_wrapper = dict(accumulative_counts=4, optimizer=dict(lr=0.1 * 8192 / 256))
auto_scale_lr = dict(base_batch_size=8192)
