_base_ = 'mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py'

# U-MAE: MAE plus the uniformity term, as the authors' pretrain.sh has it: 200 epochs, 40 of
# warm-up, 8 GPUs with 128 images each, base learning rate 1.5e-4, lambda 1e-2, which their
# gathering turns into 1e-2 / 8 = 1.25e-3 (section 5.1 says 1e-3). See docs/u-mae.md.

custom_imports = dict(imports=['mim_plugins.mmpretrain'], allow_failed_imports=False)

model = dict(type='UMAE', uniformity_weight=1e-2, official_gather=True, double_norm=True)

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
