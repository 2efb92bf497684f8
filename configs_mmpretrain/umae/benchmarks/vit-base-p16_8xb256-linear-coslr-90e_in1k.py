_base_ = 'mmpretrain::mae/benchmarks/vit-base-p16_8xb2048-linear-coslr-90e_in1k.py'

# The linear probe of the authors' finetune.sh: 8 GPUs with 256 images each, 4 batches accumulated
# (8192 images instead of MAE's 16384), base learning rate 0.1.

custom_imports = dict(imports=['mim_plugins.mmpretrain'], allow_failed_imports=False)

train_dataloader = dict(batch_size=256)
optim_wrapper = dict(accumulative_counts=4, optimizer=dict(lr=0.1 * 8192 / 256))
auto_scale_lr = dict(base_batch_size=8192)
