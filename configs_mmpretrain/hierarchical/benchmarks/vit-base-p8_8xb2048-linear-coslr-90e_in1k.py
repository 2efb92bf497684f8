_base_ = 'mmpretrain::mae/benchmarks/vit-base-p16_8xb2048-linear-coslr-90e_in1k.py'

custom_imports = dict(imports=['mim_plugins.mmpretrain'], allow_failed_imports=False)

# The linear probe of MAE for ViT patches of 8 pixels. For patches of 16 take the base itself.
model = dict(backbone=dict(patch_size=8))

auto_scale_lr = dict(base_batch_size=16384)
