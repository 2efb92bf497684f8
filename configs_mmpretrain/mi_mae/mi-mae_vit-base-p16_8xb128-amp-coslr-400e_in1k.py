_base_ = 'mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-400e_in1k.py'

custom_imports = dict(imports=['mim_plugins.mmpretrain'], allow_failed_imports=False)

model = dict(
    type='MIMAE',
    backbone=dict(
        type='MaskedMAEViT', masking=dict(type='ComplementaryMasking', num_masks=4)
    ),
)

# Four masks per image: as many masked images per step and GPU as the stock config's 512, and
# its learning rate. InfoNCE compares the 1024 images of the global batch.
train_dataloader = dict(batch_size=128)
auto_scale_lr = dict(base_batch_size=1024)
