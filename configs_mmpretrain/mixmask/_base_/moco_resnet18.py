# MoCo v1 of table 8: ResNet-18 with CIFAR's stem and a linear projection. The loss of both views
# and batch norm in eight parts, as on eight GPUs, are MoCo's CIFAR demo's and Un-Mix's.
model = dict(
    type='MixMaskMoCo',
    symmetric=True,
    queue_len=4096,
    feat_dim=128,
    momentum=0.01,  # moco-m 0.99
    backbone=dict(
        type='ResNet_CIFAR',
        depth=18,
        zero_init_residual=False,
        norm_cfg=dict(type='SplitBN', num_splits=8),
    ),
    neck=dict(
        type='LinearNeck', in_channels=512, out_channels=128, gap_dim=2, norm_cfg=None
    ),
    head=dict(
        type='ContrastiveHead', loss=dict(type='CrossEntropyLoss'), temperature=0.1
    ),
)

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.06, momentum=0.9, weight_decay=5e-4),
)
param_scheduler = [
    dict(type='CosineAnnealingLR', T_max=1000, by_epoch=True, begin=0, end=1000)
]
