_base_ = 'mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-800e_in1k.py'

custom_imports = dict(imports=['mim_plugins.mmpretrain'], allow_failed_imports=False)

# Section 3, second set: ViT patches of 8 pixels, ratio 0.75, masking units of 8, 16 or 32 pixels,
# by --cfg-options model.backbone.masking.mask_unit=32
model = dict(
    backbone=dict(
        type='MaskedMAEViT',
        patch_size=8,
        mask_ratio=0.75,
        masking=dict(type='RandomMasking', mask_unit=8),
    ),
    neck=dict(patch_size=8, num_patches=(224 // 8)**2),
    head=dict(patch_size=8),
)
