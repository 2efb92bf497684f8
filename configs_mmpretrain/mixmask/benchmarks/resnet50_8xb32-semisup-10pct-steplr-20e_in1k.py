_base_ = './resnet50_8xb32-semisup-1pct-steplr-20e_in1k.py'

# 10 % of the labels, SwAV's rates for it.
train_dataloader = dict(dataset=dict(ann_file='meta/train_10percent.txt'))

lr, lr_last_layer = 0.01, 0.2
optim_wrapper = dict(
    optimizer=dict(lr=lr),
    paramwise_cfg=dict(custom_keys={'head.': dict(lr_mult=lr_last_layer / lr)}),
)
