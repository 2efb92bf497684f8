_base_ = [
    './_base_/simsiam_resnet18.py',
    './_base_/cifar100_bs512_wmse.py',
    './_base_/runtime_1000e.py',
]

model = dict(
    mixing=dict(mask='block', grid_size=2, ratio=0.5),
)

custom_hooks = [
    dict(type='SimSiamHook', priority='HIGH', fix_pred_lr=True, lr={{_base_.lr}}),
    {{_base_.knn_hook}},
]
