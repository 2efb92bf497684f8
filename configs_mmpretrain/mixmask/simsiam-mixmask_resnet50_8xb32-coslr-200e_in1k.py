_base_ = 'mmpretrain::simsiam/simsiam_resnet50_8xb32-coslr-200e_in1k.py'

custom_imports = dict(imports=['mim_plugins.mmpretrain'], allow_failed_imports=False)

model = dict(
    type='MixMaskSimSiam',
    mixing=dict(mask='block', grid_size=8, ratio=0.5),
)

# Ranks mix differently.
randomness = dict(seed=0, diff_rank_seed=True)
