# Section 3.5, table 3: Mask R-CNN on the pre-trained ViT, made multi-scale for FPN; 45 epochs.
# Run by MMDetection's own tools/train.py (needs mmdet and the full mmcv, not mmcv-lite):
# tools/train.py THIS --cfg-options model.backbone.init_cfg.checkpoint=CHECKPOINT
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::common/lsj-100e_coco-instance.py',
]

custom_imports = dict(
    imports=['mmpretrain.models', 'mim_plugins.mmpretrain'], allow_failed_imports=False)

image_size = 1024
model = dict(
    data_preprocessor=dict(
        batch_augments=[
            dict(type='BatchFixedSizePad', size=(image_size, image_size), pad_mask=True)
        ]),
    backbone=dict(
        _delete_=True,
        type='mmpretrain.VisionTransformer',
        arch='b',
        img_size=image_size,
        patch_size=16,
        drop_path_rate=0.1,
        out_indices=(2, 5, 8, 11),
        out_type='featmap',
        final_norm=False,
        init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone.'),
    ),
    # Strides 16, 16, 16, 16 to 4, 8, 16, 32, then the usual FPN.
    neck=[
        dict(type='ViTPyramid', embed_dims=768),
        dict(type='FPN', in_channels=[768] * 4, out_channels=256, num_outs=5),
    ],
)

# 45 epochs instead of 100: the base repeats the data set 4 times in each of its 25.
train_dataloader = dict(dataset=dict(times=1))
max_epochs = 45
train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = dict(
    _delete_=True,
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=250),
    dict(
        type='MultiStepLR',
        begin=0,
        end=max_epochs,
        by_epoch=True,
        milestones=[40, 43],
        gamma=0.1),
]
