_base_ = 'mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-400e_in1k.py'

custom_imports = dict(imports=['mim_plugins.mmpretrain'], allow_failed_imports=False)

model = dict(
    type='MIMAE',
    backbone=dict(
        type='MaskedMAEViT', masking=dict(type='ComplementaryMasking', num_masks=4)
    ),
)

# MAE's own batch of 4096 images with its learning rate and warm-up of 40 epochs, by accumulation:
# four masks per image make 512 masked images per GPU, as in the stock config. On 32 GPUs:
# optim_wrapper.accumulative_counts=1. InfoNCE compares the 1024 images encoded together.
train_dataloader = dict(batch_size=128)
optim_wrapper = dict(accumulative_counts=4, optimizer=dict(lr=1.5e-4 * 4096 / 256))
auto_scale_lr = dict(base_batch_size=4096)
