_base_ = 'mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py'

# U-MAE: MAE plus the uniformity term. lambda 1e-3: section 5.1.
# 200 epochs, batch 1024, weight decay 0.05, mask ratio 0.75: section 5.1.

custom_imports = dict(imports=['mim_plugins.mmpretrain'], allow_failed_imports=False)

model = dict(type='UMAE', uniformity_weight=1e-3)

train_dataloader = dict(batch_size=128)
optim_wrapper = dict(optimizer=dict(lr=1.5e-4 * 1024 / 256))
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.0001,
        by_epoch=True,
        begin=0,
        end=40,
        convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=160,
        by_epoch=True,
        begin=40,
        end=200,
        convert_to_iter_based=True)
]
train_cfg = dict(max_epochs=200)

auto_scale_lr = dict(base_batch_size=1024)
