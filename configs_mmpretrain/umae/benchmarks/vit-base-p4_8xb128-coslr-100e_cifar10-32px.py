_base_ = './vit-tiny-p4_8xb128-coslr-100e_cifar10-32px.py'

model = dict(backbone=dict(arch='b'), head=dict(in_channels=768))
