# SimSiam of table 8: ResNet-18 with CIFAR's stem, projector of two layers. Hidden widths are
# SimSiam's own on CIFAR-10: 2048 in the projector, a quarter of the output in the predictor.
model = dict(
    type='MixMaskSimSiam',
    backbone=dict(type='ResNet_CIFAR', depth=18, zero_init_residual=True),
    neck=dict(
        type='NonLinearNeck',
        in_channels=512,
        hid_channels=2048,
        out_channels=128,
        num_layers=2,
        with_last_bn_affine=False,
        with_avg_pool=True,
        norm_cfg=dict(type='BN1d'),
    ),
    head=dict(
        type='LatentPredictHead',
        loss=dict(type='CosineSimilarityLoss'),
        predictor=dict(
            type='NonLinearNeck',
            in_channels=128,
            hid_channels=32,
            out_channels=128,
            with_avg_pool=False,
            with_last_bn=False,
            with_last_bias=True,
            norm_cfg=dict(type='BN1d'),
        ),
    ),
)

lr = 0.03
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=lr, momentum=0.9, weight_decay=5e-4),
    paramwise_cfg=dict(custom_keys={'predictor': dict(fix_lr=True)}),
)

# 10 epochs of warm-up (table 8), then SimSiam's own cosine.
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
