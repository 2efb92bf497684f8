_base_ = 'mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py'

# U-MAE on CIFAR-10. 2000 epochs, batch 4096, weight decay 0.05: section 5.1; one GPU: appendix
# B.3 (which says 1600 epochs), so that the authors' lambda 1e-2 acts undivided. The paper gives
# neither patch size nor decoder: patches of 4 pixels (64 per image) and a decoder of width 192
# and depth 4 are ours.

custom_imports = dict(imports=['mim_plugins.mmpretrain'], allow_failed_imports=False)

model = dict(
    type='UMAE',
    uniformity_weight=1e-2,
    official_gather=True,
    double_norm=True,
    backbone=dict(arch='deit-tiny', img_size=32, patch_size=4),
    neck=dict(
        patch_size=4,
        num_patches=64,
        embed_dim=192,
        decoder_embed_dim=192,
        decoder_depth=4,
        decoder_num_heads=3),
    head=dict(patch_size=4))

train_dataloader = dict(
    batch_size=4096,
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

data_preprocessor = dict(
    mean=[125.307, 122.961, 113.8575], std=[51.5865, 50.847, 51.255], to_rgb=False)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.0001,
        by_epoch=True,
        begin=0,
        end=40,
        convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=1960,
        by_epoch=True,
        begin=40,
        end=2000,
        convert_to_iter_based=True)
]
train_cfg = dict(max_epochs=2000)

default_hooks = dict(checkpoint=dict(interval=100))
