_base_ = 'mmpretrain::simmim/simmim_swin-base-w6_8xb256-amp-coslr-100e_in1k-192px.py'

# U-SimMIM with SimMIM's own ViT-B. Section 5.1: ImageNet-100, 200 epochs, batch 128, weight decay
# 0.05, mask ratio 0.6, lambda 1e-4 (appendix B.6: 1e-2), on 4 GPUs as appendix B.3's. The rest is
# SimMIM's simmim_pretrain__vit_base__img224__800ep: base learning rate 1e-4 for 512 images, 10
# epochs of warm-up from 5e-7, x 0.1 after 7/8 of the epochs, drop path 0.1, masking unit 32,
# shared relative position bias and no position embedding.

custom_imports = dict(imports=['mim_plugins.mmpretrain'], allow_failed_imports=False)

model = dict(
    type='USimMIM',
    uniformity_weight=1e-4,
    official_gather=True,
    backbone=dict(
        _delete_=True, type='SimMIMBEiTViT', arch='b', img_size=224, patch_size=16,
        drop_path_rate=0.1),
    neck=dict(in_channels=768, encoder_stride=16),
    head=dict(patch_size=16))

train_dataloader = dict(
    batch_size=32,
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root='data/imagenet100/',
        data_prefix='train',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='RandomResizedCrop', scale=224, crop_ratio_range=(0.67, 1.0)),
            dict(type='RandomFlip', prob=0.5),
            dict(
                type='SimMIMMaskGenerator',
                input_size=224,
                mask_patch_size=32,
                model_patch_size=16,
                mask_ratio=0.6),
            dict(type='PackInputs')
        ]))

optim_wrapper = dict(
    optimizer=dict(lr=1e-4 * 128 / 512),
    # Norms, layer scale, biases, position biases and tokens do not decay.
    paramwise_cfg=dict(
        custom_keys=dict(
            ln=dict(decay_mult=0.0),
            gamma=dict(decay_mult=0.0),
            cls_token=dict(decay_mult=0.0),
            mask_token=dict(decay_mult=0.0))))
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=5e-7 / 1e-4,
        by_epoch=True,
        begin=0,
        end=10,
        convert_to_iter_based=True),
    dict(type='MultiStepLR', milestones=[175], gamma=0.1, by_epoch=True, begin=0, end=200)
]
train_cfg = dict(max_epochs=200)
auto_scale_lr = dict(base_batch_size=128)
