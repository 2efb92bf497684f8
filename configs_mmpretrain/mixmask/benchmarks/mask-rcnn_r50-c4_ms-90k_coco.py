_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50-caffe-c4_1x_coco.py'

# COCO detection and segmentation (table 7): detectron2's mask_rcnn_R_50_C4_1x (90k iterations)
# with an extra norm after the shared stage (Res5ROIHeadsExtraNorm), SyncBN throughout, and precise
# statistics of it before each test. The learning rate 0.02 is for 8 GPUs with 2 images each.
custom_imports = dict(
    imports=[
        'mmpretrain.models.utils.res_layer_extra_norm',
        'mmpretrain.engine.hooks.precise_bn_hook',
    ],
    allow_failed_imports=False,
)

norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    # As in pre-training: RGB, mean and standard deviation of ImageNet
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
    backbone=dict(
        frozen_stages=-1,
        norm_cfg=norm_cfg,
        norm_eval=False,
        style='pytorch',
        init_cfg=dict(_delete_=True, type='Pretrained', checkpoint='', prefix='backbone.'),
    ),
    roi_head=dict(
        shared_head=dict(
            type='ResLayerExtraNorm',
            norm_cfg=norm_cfg,
            norm_eval=False,
            style='pytorch',
            init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone.'),
        )
    ),
)

train_pipeline = [
    dict(type='LoadImageFromFile', backend_args={{_base_.backend_args}}),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='RandomChoiceResize',
        scales=[(1333, side) for side in range(640, 801, 32)],
        keep_ratio=True,
    ),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
# PreciseBNHook asks the loader for its batch size, which one with a batch sampler does not tell.
train_dataloader = dict(
    sampler=dict(type='InfiniteSampler', shuffle=True),
    batch_sampler=None,
    dataset=dict(pipeline=train_pipeline),
)

max_iter = 90000
val_interval = 10000
train_cfg = dict(
    _delete_=True, type='IterBasedTrainLoop', max_iters=max_iter, val_interval=val_interval
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(
        type='MultiStepLR',
        begin=0,
        end=max_iter,
        by_epoch=False,
        milestones=[60000, 80000],
        gamma=0.1,
    ),
]
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=val_interval))
log_processor = dict(by_epoch=False)
# detectron2's 200 batches of 16 images
custom_hooks = [
    dict(
        type='mmpretrain.PreciseBNHook',
        num_samples=3200,
        interval=val_interval,
        priority='ABOVE_NORMAL',
    )
]
