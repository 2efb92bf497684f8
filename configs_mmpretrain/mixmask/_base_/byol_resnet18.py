# BYOL of table 8: ResNet-18 with CIFAR's stem, projector and predictor of two layers, hidden
# width 1024.
model = dict(
    type='MixMaskBYOL',
    base_momentum=0.01,  # byol tau 0.99
    backbone=dict(type='ResNet_CIFAR', depth=18, zero_init_residual=False),
    neck=dict(
        type='NonLinearNeck',
        in_channels=512,
        hid_channels=1024,
        out_channels=64,
        num_layers=2,
        with_bias=True,
        with_last_bn=False,
        with_avg_pool=True,
        norm_cfg=dict(type='BN1d'),
    ),
    head=dict(
        type='LatentPredictHead',
        predictor=dict(
            type='NonLinearNeck',
            in_channels=64,
            hid_channels=1024,
            out_channels=64,
            num_layers=2,
            with_bias=True,
            with_last_bn=False,
            with_avg_pool=False,
            norm_cfg=dict(type='BN1d'),
        ),
        loss=dict(type='CosineSimilarityLoss'),
    ),
)

# Table 8 lists weight decay 5e-4 and Adam l2 1e-6; Adam gets the latter.
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='Adam', lr=0.003, weight_decay=1e-6)
)

# W-MSE's schedule, from which table 8's settings come: 500 iterations of warm-up, x 0.2 at 50 and
# 25 epochs before the end.
param_scheduler = [
    dict(type='LinearLR', start_factor=1 / 500, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', milestones=[950, 975], gamma=0.2, by_epoch=True, begin=0, end=1000),
]
