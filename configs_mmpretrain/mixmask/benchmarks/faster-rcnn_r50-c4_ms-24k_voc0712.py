_base_ = 'mmdet::pascal_voc/faster-rcnn_r50-caffe-c4_ms-18k_voc0712.py'

# Pascal VOC detection (table 7): trained on 2007 and 2012 trainval, 24k iterations of 16 images,
# tested on 2007, as MoCo's protocol; extra norm after the shared stage, SyncBN throughout
# with precise statistics before each test. The learning rate 0.02 is for 8 GPUs with 2 images each.
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
            init_cfg=dict(_delete_=True, type='Pretrained', checkpoint='', prefix='backbone.'),
        )
    ),
)

# Each VOCDataset adds its year to its meta information, which must otherwise be equal.
# PreciseBNHook asks the loader for its batch size, which one with a batch sampler does not tell.
train_dataloader = dict(batch_sampler=None, dataset=dict(ignore_keys=['dataset_type']))

max_iter = 24000
train_cfg = dict(max_iters=max_iter, val_interval=2000)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=100),
    dict(
        type='MultiStepLR',
        begin=0,
        end=max_iter,
        by_epoch=False,
        milestones=[18000, 22000],
        gamma=0.1,
    ),
]
default_hooks = dict(checkpoint=dict(interval=2000))
# detectron2's 200 batches of 16 images
custom_hooks = [
    dict(
        type='mmpretrain.PreciseBNHook',
        num_samples=3200,
        interval=2000,
        priority='ABOVE_NORMAL',
    )
]

# AP (as mAP), AP50 and AP75 among the single thresholds
val_evaluator = dict(iou_thrs=[0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95])
test_evaluator = val_evaluator
