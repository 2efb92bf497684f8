_base_ = [
    './_base_/simsiam_resnet18.py',
    './_base_/cifar100_bs512.py',
    './_base_/runtime_1000e.py',
]

model = dict(
    mixmask=dict(mask='block', grid_size=2, ratio=0.5),
)

# 10 epochs of warm-up (table 8)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-4,
        by_epoch=True,
        begin=0,
        end=10,
        convert_to_iter_based=True,
    ),
    dict(type='CosineAnnealingLR', T_max=990, by_epoch=True, begin=10, end=1000),
]
custom_hooks = [
    dict(type='SimSiamHook', priority='HIGH', fix_pred_lr=True, lr={{_base_.lr}}),
    {{_base_.knn_hook}},
]
