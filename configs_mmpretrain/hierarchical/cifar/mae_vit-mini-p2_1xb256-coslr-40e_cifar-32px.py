# ViT patches of 2 pixels, masking units of 2, 4 or 8: the paper's sweep scaled from 224 to 32, by
# --cfg-options model.backbone.masking.mask_unit=8
_base_ = './mae_vit-mini-p4_1xb256-coslr-40e_cifar-32px.py'

model = dict(
    backbone=dict(patch_size=2, masking=dict(mask_unit=2)),
    neck=dict(patch_size=2, num_patches=(32 // 2)**2),
    head=dict(patch_size=2),
)
