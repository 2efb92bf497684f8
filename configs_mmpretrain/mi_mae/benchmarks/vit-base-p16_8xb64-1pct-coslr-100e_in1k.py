_base_ = 'mmpretrain::mae/benchmarks/vit-base-p16_8xb128-coslr-100e_in1k.py'

# 1 % of the labels: the stock fine-tuning with a smaller batch, 512, and learning rate, scaled
# linearly. Ours: the abstract at hand names no semi-supervised setting.
custom_imports = dict(imports=['mim_plugins.mmpretrain'], allow_failed_imports=False)

# Lines 'n01440764/n01440764_10026.JPEG 0' for SimCLR's list of images, see README.md.
train_dataloader = dict(
    batch_size=64, dataset=dict(split='', ann_file='meta/train_1percent.txt', data_prefix='train')
)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
default_hooks = dict(checkpoint=dict(interval=10))

auto_scale_lr = dict(base_batch_size=512)
