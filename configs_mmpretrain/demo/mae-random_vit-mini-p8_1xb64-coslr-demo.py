# Masked autoencoder pre-training cut down to two CPU cores: the stock config, a small ViT
# and an image folder. `python -m mim_plugins demo` sets the environment variables below.
_base_ = 'mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py'

# After _base_: with an import first, mmengine takes this for another kind of config.
import os  # noqa: E402

custom_imports = dict(imports=['mim_plugins.mmpretrain'], allow_failed_imports=False)

image_size = int(os.environ.get('DEMO_IMAGE_SIZE', 64))
patch_size = int(os.environ.get('DEMO_PATCH_SIZE', 8))
epochs = int(os.environ.get('DEMO_EPOCHS', 18))
batch_size = int(os.environ.get('DEMO_BATCH_SIZE', 64))
dims = 128

model = dict(
    backbone=dict(
        type='MaskedMAEViT',
        arch=dict(
            _delete_=True, embed_dims=dims, num_layers=4, num_heads=4, feedforward_channels=4 * dims
        ),
        img_size=image_size,
        patch_size=patch_size,
        masking=dict(type='RandomMasking'),
    ),
    neck=dict(
        patch_size=patch_size,
        num_patches=(image_size // patch_size) ** 2,
        embed_dim=dims,
        decoder_embed_dim=64,
        decoder_depth=2,
        decoder_num_heads=4,
    ),
    head=dict(patch_size=patch_size, norm_pix=False),
)

train_dataloader = dict(
    batch_size=batch_size,
    num_workers=1,
    drop_last=True,
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root=os.environ.get('DEMO_DATA', 'data/photos'),
        data_prefix='train',
        extensions=('.jpg', '.jpeg', '.png', '.webp', '.bmp'),
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

optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        T_max=epochs,
        by_epoch=True,
        begin=0,
        end=epochs,
        convert_to_iter_based=True)
]

train_cfg = dict(max_epochs=epochs)
default_hooks = dict(checkpoint=dict(interval=-1, save_last=True), logger=dict(interval=10))
resume = False
