_base_ = './mae_vit-base-p16_reconstruction_in1k.py'

model = dict(
    backbone=dict(patch_size=8),
    neck=dict(patch_size=8, num_patches=(224 // 8)**2),
    head=dict(patch_size=8),
)
