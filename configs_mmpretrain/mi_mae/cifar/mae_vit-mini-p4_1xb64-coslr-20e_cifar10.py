# Masked autoencoder at CIFAR's size for the ablation: the stock MAE config cut down. Images in
# class folders under data/cifar10/train; another folder by
# --cfg-options train_dataloader.dataset.data_root=FOLDER
_base_ = 'mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py'

custom_imports = dict(imports=['mim_plugins.mmpretrain'], allow_failed_imports=False)

dims = 128

model = dict(
    backbone=dict(
        type='MaskedMAEViT',
        arch=dict(
            _delete_=True, embed_dims=dims, num_layers=4, num_heads=4, feedforward_channels=4 * dims
        ),
        img_size=32,
        patch_size=4,
    ),
    neck=dict(
        patch_size=4,
        num_patches=64,
        embed_dim=dims,
        decoder_embed_dim=64,
        decoder_depth=2,
        decoder_num_heads=4,
    ),
    head=dict(patch_size=4, norm_pix=False),
)

train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    drop_last=True,
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root='data/cifar10',
        data_prefix='train',
        extensions=('.jpg', '.jpeg', '.png', '.webp', '.bmp'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(
                type='RandomResizedCrop',
                scale=32,
                crop_ratio_range=(0.5, 1.0),
                backend='pillow',
                interpolation='bicubic',
            ),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackInputs'),
        ],
    ),
)

# Without AMP, which is slower on most CPUs.
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05),
)
epochs = 20
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        T_max=epochs,
        by_epoch=True,
        begin=0,
        end=epochs,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=epochs)
default_hooks = dict(checkpoint=dict(interval=-1, save_last=True), logger=dict(interval=50))
resume = False

auto_scale_lr = dict(base_batch_size=64)
