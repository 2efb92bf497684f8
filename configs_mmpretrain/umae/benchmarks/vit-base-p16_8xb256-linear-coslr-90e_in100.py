_base_ = '../../dppmask/benchmarks/vit-base-p16_8xb2048-linear-coslr-90e_in100.py'

# Batch and learning rate as on ImageNet-1K.
train_dataloader = dict(batch_size=256)
optim_wrapper = dict(accumulative_counts=4, optimizer=dict(lr=0.1 * 8192 / 256))
auto_scale_lr = dict(base_batch_size=8192)
