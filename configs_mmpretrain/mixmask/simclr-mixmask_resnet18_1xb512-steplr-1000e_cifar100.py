_base_ = [
    './_base_/simclr_resnet18.py',
    './_base_/cifar100_bs512_wmse.py',
    './_base_/runtime_1000e.py',
]

model = dict(
    mixing=dict(mask='block', grid_size=2, ratio=0.5),
)

custom_hooks = [{{_base_.knn_hook}}]
