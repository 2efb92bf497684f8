_base_ = 'mmpretrain::simmim/simmim_swin-base-w6_8xb256-amp-coslr-100e_in1k-192px.py'

# U-SimMIM with ViT-B, which upstream's SimMIM lacks. lambda 1e-4: section 5.1. ImageNet-100,
# 200 epochs, batch 128, weight decay 0.05, mask ratio 0.6: section 5.1 and appendix B.6.
# Masking unit 32 and learning rate are SimMIM's; the paper does not give them.

custom_imports = dict(imports=['mim_plugins.mmpretrain'], allow_failed_imports=False)

model = dict(
    type='USimMIM',
    uniformity_weight=1e-4,
    backbone=dict(
        _delete_=True, type='SimMIMViT', arch='b', img_size=224, patch_size=16,
        drop_path_rate=0.1),
    neck=dict(in_channels=768, encoder_stride=16),
    head=dict(patch_size=16))

train_dataloader = dict(
    batch_size=16,
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

optim_wrapper = dict(optimizer=dict(lr=2e-4 * 128 / 512))
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.005,
        by_epoch=True,
        begin=0,
        end=20,
        convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=180,
        eta_min=1e-5 * 128 / 512,
        by_epoch=True,
        begin=20,
        end=200,
        convert_to_iter_based=True)
]
train_cfg = dict(max_epochs=200)
auto_scale_lr = dict(base_batch_size=128)
