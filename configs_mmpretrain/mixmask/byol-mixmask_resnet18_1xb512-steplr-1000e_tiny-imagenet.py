_base_ = [
    './_base_/byol_resnet18.py',
    './_base_/tiny-imagenet_bs512_wmse.py',
    './_base_/runtime_1000e.py',
]

model = dict(
    mixing=dict(mask='block', grid_size=4, ratio=0.5),
    backbone=dict(strides=(2, 2, 2, 2)),  # 64 pixels: the resolutions of CIFAR's
    neck=dict(out_channels=128),
    head=dict(predictor=dict(in_channels=128, out_channels=128)),
)

optim_wrapper = dict(optimizer=dict(lr=0.002))

custom_hooks = [{{_base_.knn_hook}}]
