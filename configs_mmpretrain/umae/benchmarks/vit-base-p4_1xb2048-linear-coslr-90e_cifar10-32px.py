_base_ = './vit-tiny-p4_1xb2048-linear-coslr-90e_cifar10-32px.py'

model = dict(
    backbone=dict(arch='b'), neck=dict(input_features=768), head=dict(in_channels=768))
