_base_ = [
    './_base_/simsiam_resnet18.py',
    './_base_/tiny-imagenet_bs512_wmse.py',
    './_base_/runtime_1000e.py',
]

model = dict(
    mixing=dict(mask='block', grid_size=4, ratio=0.5),
    backbone=dict(strides=(2, 2, 2, 2)),  # 64 pixels: the resolutions of CIFAR's
)

custom_hooks = [
    dict(type='SimSiamHook', priority='HIGH', fix_pred_lr=True, lr={{_base_.lr}}),
    {{_base_.knn_hook}},
]
