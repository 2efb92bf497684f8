_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'

# COCO detection and instance segmentation: mmdetection's Mask R-CNN with mmpretrain's own ViT, so
# that the checkpoint loads without conversion, and mmsegmentation's pyramid of its single scale.
# Ours, like the schedule: the abstract at hand names no detector. Layer decay 0.75 and AdamW as
# usual for a ViT of this size.
custom_imports = dict(
    imports=['mim_plugins.mmpretrain', 'mmpretrain.models', 'mmseg.models'],
    allow_failed_imports=False,
)

model = dict(
    # as in pre-training: RGB, mean and standard deviation of ImageNet
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    ),
    backbone=dict(
        _delete_=True,
        type='mmpretrain.VisionTransformer',
        arch='base',
        img_size=224,  # position embeddings are resized to each batch
        patch_size=16,
        drop_path_rate=0.1,
        out_indices=[2, 5, 8, 11],
        out_type='featmap',
        final_norm=False,
        init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone.'),
    ),
    neck=[
        dict(
            type='mmseg.Feature2Pyramid',
            embed_dim=768,
            rescales=[4, 2, 1, 0.5],
            norm_cfg=dict(type='SyncBN', requires_grad=True),
        ),
        dict(
            type='FPN',
            in_channels=[768, 768, 768, 768],
            out_channels=256,
            num_outs=5,
            norm_cfg=dict(type='SyncBN', requires_grad=True),
        ),
    ],
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
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

optim_wrapper = dict(
    _delete_=True,
    type='AmpOptimWrapper',
    loss_scale='dynamic',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={
            'backbone.cls_token': dict(lr_mult=0.75**13, decay_mult=0.0),
            'backbone.pos_embed': dict(lr_mult=0.75**13, decay_mult=0.0),
            'backbone.patch_embed.': dict(lr_mult=0.75**13),
            **{f'backbone.layers.{i}.': dict(lr_mult=0.75 ** (12 - i)) for i in range(12)},
        },
    ),
)
