_base_ = [
    './_base_/moco_resnet18.py',
    './_base_/tiny-imagenet_bs512.py',
    './_base_/runtime_1000e.py',
]

model = dict(
    mixing=dict(mask='block', grid_size=4, ratio=0.5),
    backbone=dict(strides=(2, 2, 2, 2)),  # 64 pixels: the resolutions of CIFAR's
)

custom_hooks = [{{_base_.knn_hook}}]
