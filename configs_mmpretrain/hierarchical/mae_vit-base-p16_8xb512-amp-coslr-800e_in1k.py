_base_ = 'mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-800e_in1k.py'

custom_imports = dict(imports=['mim_plugins.mmpretrain'], allow_failed_imports=False)

# Section 3, first set: patch size 16, mask ratio from {0.1, 0.25, 0.5, 0.75, 0.9}, by
# --cfg-options model.backbone.mask_ratio=0.5
model = dict(backbone=dict(mask_ratio=0.75))
